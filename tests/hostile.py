"""Requests that nobody sends in good faith, without end and the same for one seed: bytes for a socket."""

import json
import random
from collections.abc import Iterator

WRONG = [
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, 10**400, -(10**30), 0.5, 1e308, -1e308, "", "x", "\x00", "\ud800",
    "a" * 5000, "ä🙂", [], [[]], [None], [1, "x"], [[1], "x"], [-1], [999999], [2**70], {}, {"a": {}}, [[[[]]]],
    "none", "1", [0.5], [True], ["x"] * 70, [""], ["x" * 300], {"$ref": "#"}, "NaN", [{"role": "user"}],
    [{"role": "user", "content": None}], [{"role": "user", "content": [{"type": "image_url"}]}], [{"content": "x"}],
    [{"role": "assistant", "content": "x"}], [{"role": "user", "content": "x"}] * 2, [{"role": "\x00", "content": ""}],
    [{"role": "system", "content": "x"}], [{"role": "user", "content": "\ud800"}],
]  # fmt: skip
FIELDS = [
    "model", "prompt", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "n", "stop", "seed",
    "stream", "stream_options", "logprobs", "top_logprobs", "echo", "best_of", "suffix", "logit_bias", "tools", "pico",
    "frequency_penalty", "presence_penalty", "user", "response_format", "unknown", "__proto__", "self",
]  # fmt: skip
BROKEN = [
    b"", b"{", b"[", b"nul", b"\xff\xfe", b"\x00" * 40, b'{"model": tiny}', b"[" * 20000, b'{"a":' * 20000, b"1" * 9000,
    b'"x"', b"[]", b"null", b'{"model": "tiny", "prompt": NaN}', b'{"model": "tiny", "temperature": Infinity}',
    b'{"model": "tiny", "prompt": "\\ud800"}', b'{"model": "tiny", "prompt": "\xff"}', b'{"model": "tiny"}}',
    b'{"model": "tiny", "seed": 1e999}', b'{"model": "tiny", "n": ' + b"9" * 5000 + b"}", "{}".encode("utf-16"),
]  # fmt: skip
PATHS = [
    "/v1/completions", "/v1/chat/completions", "/v1/models", "/v1/models/x", "/v1/models/../../etc/passwd", "/", "//",
    "/v1", "/v1/embeddings", "/metrics", "/health", "/%00", "/%ff%fe", "/..%2f..%2fetc%2fpasswd",
    "/index.html?x=" + "y" * 900, "/../../../../etc/passwd", "/web/index.html", "/docs", "/openapi.json",
    "/v1/completions/", "*", "http://evil.example/", "/" + "a/" * 900, "/\u0000".encode().decode("latin-1"),
    "/v1/models/%ed%a0%80",
]  # fmt: skip
METHODS = ["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE", "BREW", "get", "CONNECT"]
HEADERS = [
    "Host: evil.example", "Host:", "Content-Length: -1", "Content-Length: 99999999999", "Content-Length: x",
    "Expect: 100-continue", "Transfer-Encoding: chunked", "Transfer-Encoding: gzip, chunked",
    "Content-Type: text/plain", "Content-Encoding: gzip", "Authorization: Bearer \xff", "Authorization:",
    "Range: bytes=0-", "Upgrade: websocket", "Connection: upgrade", "X: " + "y" * 9000, "Origin: null", "Cookie: a=b",
    "If-None-Match: *", "Content-Type: application/json; charset=utf-16",
]  # fmt: skip
RAW = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"GET\r\n\r\n", b"\r\n" * 50,
    b"POST /v1/completions HTTP/9.9\r\n\r\n", b"GET / HTTP/1.1\r\nHost: localhost\r\nBad Header\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x00" * 3000, b"A" * 70000,
    b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{",
    b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\nGET /health HTTP/1.1\r\nHost: localhost\r\n\r\n",
]  # fmt: skip


def nested(rng: random.Random, depth: int = 0):
    """A value of any shape."""
    if depth > 3 or rng.random() < 0.6:
        return rng.choice(WRONG)
    if rng.random() < 0.5:
        return [nested(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {rng.choice(FIELDS): nested(rng, depth + 1) for _ in range(rng.randrange(4))}


def request(method: str, path: str, body: bytes, headers: list[str]) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Connection: close", *headers]
    if not any(line.startswith("Host") for line in headers):
        lines.append("Host: localhost")
    if not any(line.startswith(("Content-Length", "Transfer")) for line in headers):
        lines.append(f"Content-Length: {len(body)}")
    if not any(line.startswith("Content-Type") for line in headers):
        lines.append("Content-Type: application/json")
    return "\r\n".join([*lines, "", ""]).encode("latin-1", "replace") + body


def hostile_requests(seed: int, model: str = "tiny") -> Iterator[bytes]:
    rng = random.Random(seed)
    while True:
        kind = rng.random()
        path = rng.choice(PATHS[:2])
        good: dict = {"model": model, "max_tokens": rng.choice([1, 2, 5]), "seed": 1, "stream": rng.random() < 0.3}
        good |= {"prompt": "one"} if path == PATHS[0] else {"messages": [{"role": "user", "content": "one"}]}
        body = json.dumps(good).encode()
        if kind < 0.5:  # one field wrong, or several
            for _ in range(rng.choice([1, 1, 1, 2, 4])):
                good[rng.choice(FIELDS)] = nested(rng)
            yield request("POST", path, json.dumps(good).encode(), [])
        elif kind < 0.62:
            yield request("POST", path, rng.choice(BROKEN), [])
        elif kind < 0.72:  # some of its bytes changed
            changed = bytearray(body)
            for _ in range(rng.randrange(1, 6)):
                changed[rng.randrange(len(changed))] = rng.randrange(256)
            yield request("POST", path, bytes(changed), [])
        elif kind < 0.84:
            yield request(rng.choice(METHODS), rng.choice(PATHS), rng.choice([b"", body]), [])
        elif kind < 0.94:
            yield request("POST", path, body, rng.sample(HEADERS, rng.randrange(1, 4)))
        elif kind < 0.97:
            yield rng.choice(RAW)
        else:  # noise, or a request that breaks off
            whole = request("POST", path, body, [])
            yield rng.choice([rng.randbytes(rng.randrange(2000)), whole[: rng.randrange(len(whole))]])
