"""A Chromium for the page, and a stand-in for its server that says what a test wants, when the test wants it."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pico.app

PAGE = Path(pico.app.__file__).parent / "web" / "index.html"
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip


def item(data: bytes, routed=False, weight=0.25, surprise: float | None = 1.0) -> dict:
    """What the server says of a symbol."""
    return {"bytes": list(data), "routed": routed, "weight": weight, "surprise": surprise}


def items(data: bytes) -> list[dict]:
    """A text byte by byte: routed is what ends a word."""
    after = [*data[1:], 32]
    return [item(data[i : i + 1], routed=after[i] in b" .,", weight=0.7, surprise=i % 9) for i in range(len(data))]


class StandIn:
    """The routes the page uses, at `address`. A request takes the next of `answers`, a list of what comes out: items,
    None (wait for `go`), dictionaries (events as they are); or a text, which is an error. `asked`: their bodies.
    """

    def __init__(self, key: str | None = None, **facts):
        self.answers: list[list | str] = []
        self.by_latent: dict[bool, list] = {}  # or one for each, whichever is asked for first
        self.asked: list[dict] = []
        self.left, self.go, self.key = threading.Event(), threading.Event(), key
        self.facts = dict(unit="byte", routes=True, chat=True, context=None, parameters=1_900_000) | facts
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_GET(self):
                if self.path == "/":
                    return self.reply(PAGE.read_bytes(), "text/html; charset=utf-8")
                if self.path != "/v1/models":
                    return self.reply(b"{}", code=404)
                if stand_in.allowed(self):
                    model = {"id": "tinystories", "object": "model", "pico": stand_in.facts}
                    self.reply(json.dumps({"object": "list", "data": [model]}).encode())

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if stand_in.allowed(self):
                    stand_in.asked.append({"path": self.path, **body})
                    stand_in.answer(self, not body["pico"]["disable_latent"])

            def reply(self, data: bytes, kind="application/json", code=200):
                self.send_response(code)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_port}/"

    def __enter__(self):
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.go.set()
        self.http.shutdown()
        self.http.server_close()

    def allowed(self, request) -> bool:
        right = self.key is None or request.headers["Authorization"] == f"Bearer {self.key}"
        if not right:
            request.reply(b'{"error": {"message": "This server asks for an API key."}}', code=401)
        return right

    def answer(self, request, latent: bool) -> None:
        chat = request.path.endswith("/chat/completions")
        answer = self.by_latent.get(latent) or self.answers.pop(0)
        if isinstance(answer, str):
            return request.reply(json.dumps({"error": {"message": answer}}).encode(), code=400)
        request.send_response(200)
        request.send_header("Content-Type", "text/event-stream")
        request.end_headers()

        def event(trace: list[dict], ended: str | None = None) -> dict:
            text = b"".join(bytes(each["bytes"]) for each in trace).decode(errors="replace")
            said = {"delta": {"content": text}} if chat else {"text": text}
            return {"choices": [{"index": 0, **said, "finish_reason": ended, "pico": trace}]}

        try:
            for each in [*answer, event([], "stop")]:
                if each is None:
                    while not self.go.wait(0.05):
                        self.send(request, ": still here\n\n")  # finds out whether the page still listens
                    self.go.clear()
                    continue
                each = event([each]) if "bytes" in each else each
                self.send(request, f"data: {json.dumps(each)}\n\n")
            self.send(request, "data: [DONE]\n\n")
        except OSError:
            self.left.set()

    def send(self, request, text: str) -> None:
        request.wfile.write(text.encode())
        request.wfile.flush()
