"""`picolm.py serve`: a model behind OpenAI's HTTP interface, and a page to talk to it.

All requests are decoded together (pico/decode/batch.py), in a thread of its own; this one reads requests and writes
replies. Whatever is asked gets an answer in OpenAI's shape. Of this machine's files only those of the page, read when
the server starts, can be had; no other site's page may ask, and none that calls this machine by another name.
"""

import asyncio
import hmac
import secrets
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from importlib import resources
from pathlib import Path

import h11
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from pico.app.api import (
    ChatCompletion,
    Completion,
    Limits,
    Refused,
    ReplyChoice,
    Wanted,
    as_json,
    read_request,
    reply,
    usage_of,
    whole_choice,
)
from pico.base.errors import PicoError
from pico.base.log import log
from pico.decode.batch import Engine, GrowingText

LOCAL = {"localhost", "127.0.0.1", "[::1]"}
LIMITS = Limits()
KINDS = {".html": "text/html; charset=utf-8", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
SAFE = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'self' 'unsafe-inline' data:; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
}


class Service:
    """One model, its engine and the requests that are being answered."""

    def __init__(self, model, name: str, chat: bool, key: str | None = None, limits: Limits = LIMITS, host="127.0.0.1"):
        self.model, self.name, self.chat, self.key, self.limits = model, name, chat, key, limits
        self.engine, self.started = Engine(model), int(time.time())
        self.names = {*LOCAL, host} if f"[{host}]" in LOCAL or host in LOCAL else None  # None: any
        self.answered: Counter[int] = Counter()
        self.open = 0  # texts that are asked for
        page = resources.files("pico.app") / "web"
        self.files = {f"/{file.name}": file.read_bytes() for file in page.iterdir() if Path(file.name).suffix in KINDS}
        self.files["/"] = self.files["/index.html"]

    def app(self):
        """What uvicorn runs."""
        inner = self.routes()

        async def app(scope, receive, send) -> None:
            async def tell(message) -> None:
                with suppress(h11.LocalProtocolError):  # its request broke off amid the body: it has uvicorn's answer
                    await send(message)

            await inner(scope, receive, tell)

        return app

    def routes(self) -> Starlette:
        routes = [
            Route("/v1/models", self.models),
            Route("/v1/models/{name:path}", self.one_model),
            Route("/v1/completions", self.completions, methods=["POST"]),
            Route("/v1/chat/completions", self.completions, methods=["POST"]),
            Route("/health", self.health),
            Route("/metrics", self.metrics),
            Route("/{file:path}", self.page),
        ]
        handlers = {HTTPException: self.failed, Refused: self.failed, Exception: self.failed}
        return Starlette(routes=routes, exception_handlers=handlers)

    # --- what needs no model ------------------------------------------------------------------------------------------

    async def failed(self, request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException):
            error = Refused(error.status_code, f"{request.method} {request.url.path[:200]}: {error.detail.lower()}")
        if not isinstance(error, Refused):
            error = Refused(500, "something went wrong here; the server's log says what")
        more = {"Retry-After": "1"} if error.status == 429 else {}
        return self.answer(error.body(), error.status, **more)

    def answer(self, content: dict, status: int = 200, **headers) -> Response:
        self.answered[status] += 1
        return Response(as_json(content), status, {**SAFE, **headers}, media_type="application/json")

    def admit(self, request: Request, private: bool = True) -> None:
        """Raises Refused for who may not ask."""
        host = request.headers.get("host", "")
        if (
            self.names is not None
            and host.rpartition(":")[0 if host.rpartition(":")[2].isdigit() else 2] not in self.names
        ):
            raise Refused(403, f"this server is not called {host[:100]!r}")
        given = request.headers.get("authorization", "").removeprefix("Bearer ").encode("latin-1", "replace")
        if private and self.key is not None and not hmac.compare_digest(given, self.key.encode()):
            raise Refused(401, "this server asks for an API key: Authorization: Bearer KEY", code="invalid_api_key")

    def about(self) -> dict:
        config = self.model.config
        parameters = sum(p.numel() for p in self.model.parameters())
        facts = dict(unit=config.unit, routes=config.routes, chat=self.chat, context=config.max_context)
        own = {"id": self.name, "object": "model", "created": self.started, "owned_by": "pico"}
        return {**own, "pico": {**facts, "parameters": parameters}}

    async def models(self, request: Request) -> Response:
        self.admit(request)
        return self.answer({"object": "list", "data": [self.about()]})

    async def one_model(self, request: Request) -> Response:
        self.admit(request)
        if request.path_params["name"] != self.name:
            raise Refused(404, f"this server has '{self.name}'", "model", "model_not_found")
        return self.answer(self.about())

    async def health(self, request: Request) -> Response:
        self.admit(request, private=False)
        return self.answer({"status": "ok"})

    async def metrics(self, request: Request) -> Response:
        self.admit(request)
        engine = self.engine
        lines = [f'pico_replies_total{{status="{status}"}} {count}' for status, count in sorted(self.answered.items())]
        lines += [f"pico_{name}_total {value}" for name, value in engine.stats.items()]
        lines += [f"pico_texts_growing {len(engine.texts)}", f"pico_texts_waiting {len(engine.waiting)}"]
        return Response("\n".join(lines) + "\n", 200, SAFE, media_type="text/plain; version=0.0.4")

    async def page(self, request: Request) -> Response:
        self.admit(request, private=False)
        path = request.scope["path"]
        if path not in self.files:
            raise HTTPException(404, "nothing here")
        return Response(self.files[path], 200, SAFE, media_type=KINDS[Path(path).suffix or ".html"])

    # --- texts --------------------------------------------------------------------------------------------------------

    async def completions(self, request: Request) -> Response:
        self.admit(request)
        kind = ChatCompletion if request.scope["path"].endswith("/chat/completions") else Completion
        wanted = read_request(kind, await self.body(request), self.model, self.name, self.limits)
        if wanted.chat and not self.chat:
            raise Refused(400, f"'{self.name}' was trained on no conversations: use /v1/completions", "model")
        count = len(wanted.prompts) * len(wanted.samplings)
        if self.open + count > self.limits.waiting + self.engine.rows:
            raise Refused(429, "too many requests at once: try again soon", code="rate_limit_exceeded")
        grown = self.grow(wanted, count)
        if wanted.stream:
            self.answered[200] += 1
            headers = {**SAFE, "Cache-Control": "no-store"}
            return StreamingResponse(grown, 200, headers, media_type="text/event-stream")
        async with aclosing(grown):
            whole = asyncio.create_task(anext(grown))
            gone = asyncio.create_task(left(request))
            await asyncio.wait({whole, gone}, return_when=asyncio.FIRST_COMPLETED)
            gone.cancel()
            if not whole.done():
                whole.cancel()
                with suppress(asyncio.CancelledError):
                    await whole
                raise Refused(408, "the client has left")
            content = whole.result()
        self.answered[200] += 1
        return Response(content, 200, SAFE, media_type="application/json")

    async def body(self, request: Request) -> bytes:
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise Refused(415, "Content-Type: expected application/json")
        data = bytearray()
        try:
            async with asyncio.timeout(30):
                async for piece in request.stream():
                    data += piece
                    if len(data) > self.limits.body:
                        raise Refused(413, f"the body: expected at most {self.limits.body:,} bytes")
        except TimeoutError:
            raise Refused(408, "the body did not come within 30 seconds") from None
        except ClientDisconnect:
            raise Refused(400, "the body did not come to its end") from None
        return bytes(data)

    async def grow(self, wanted: Wanted, count: int) -> AsyncGenerator[bytes]:
        """The reply to a request: its events, or all in one piece. Texts stop growing when nobody reads on."""
        loop, heard = asyncio.get_running_loop(), asyncio.Queue()
        choices, texts = [ReplyChoice(i, wanted, self.model.alphabet) for i in range(count)], list[GrowingText]()
        ident = f"{'chatcmpl' if wanted.chat else 'cmpl'}-{secrets.token_hex(12)}"

        def tell(index: int):
            return lambda *news: loop.call_soon_threadsafe(heard.put_nowait, (index, *news))

        self.open += count
        try:
            for ids in wanted.prompts:
                for sampling in wanted.samplings:
                    how = dict(most=wanted.most, disable_latent=wanted.disable_latent, top=wanted.top or 0)
                    texts.append(self.engine.add(ids, sampling, tell(len(texts)), **how))
            pieces: list[list[dict]] = [[] for _ in choices]
            async with asyncio.timeout(self.limits.seconds):
                while not all(choice.ended for choice in choices):
                    index, steps, ended, told = await heard.get()
                    if ended == "failed":
                        raise Refused(500, "something went wrong here; the server's log says what")
                    piece = choices[index].grow(steps, ended, told)
                    if piece is None:
                        continue
                    if wanted.stream:
                        yield event(reply(ident, self.name, wanted, [piece], None, True))
                    else:
                        pieces[index].append(piece)
            usage = usage_of(wanted, choices, texts)
            if not wanted.stream:
                yield as_json(
                    reply(ident, self.name, wanted, [whole_choice(each, wanted) for each in pieces], usage, False)
                )
                return
            if wanted.usage:
                yield event(reply(ident, self.name, wanted, [], usage, True))
            yield b"data: [DONE]\n\n"
        except TimeoutError:
            error = Refused(408, f"this took longer than {self.limits.seconds:g} seconds", code="timeout")
            if not wanted.stream:
                raise error from None
            yield event(error.body())
        except Refused as error:
            if not wanted.stream:
                raise
            yield event(error.body())
        finally:
            self.open -= count
            for text in texts:
                text.cancelled = True


async def left(request: Request) -> None:
    """Ends when the client does."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def event(content: dict) -> bytes:
    return b"data: " + as_json(content) + b"\n\n"


def listen(host: str, port: int) -> socket.socket:
    """A socket at the address. Raises PicoError if it cannot be had."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        opened = socket.socket(family, kind)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
        opened.listen(128)  # who comes before the server runs waits
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise PicoError(f"cannot listen at {host}:{port} ({reason}): choose another --host or --port") from None
    return opened


def server(service: Service) -> uvicorn.Server:
    """What answers HTTP; run it with the sockets of `listen`, while the engine runs in a thread."""
    config = uvicorn.Config(
        service.app(), log_level="warning", access_log=False, server_header=False, timeout_keep_alive=30,
        timeout_graceful_shutdown=2, lifespan="off", ws="none", proxy_headers=False, log_config=None,
    )  # fmt: skip
    return uvicorn.Server(config)


def serve_model(model, name: str, chat: bool, host: str, port: int, key: str | None) -> None:
    """Answers until Ctrl-C."""
    opened = listen(host, port)
    service = Service(model, name, chat, key, host=host)
    address = f"http://{f'[{host}]' if ':' in host else host}:{opened.getsockname()[1]}"
    log(f"{name}: a page at {address}/ and OpenAI's API at {address}/v1; Ctrl-C stops")
    if service.names is None and key is None:
        log(f"warning: whoever reaches {host} can use it; --api-key asks for a key")
    sys.setswitchinterval(0.001)  # two threads take turns: one computes, the other answers
    growing = threading.Thread(target=service.engine.run, daemon=True)
    growing.start()
    try:
        server(service).run(sockets=[opened])
    except KeyboardInterrupt:
        pass
    finally:
        service.engine.close()
        growing.join(5)
