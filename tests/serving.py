"""A server of a tiny model on 127.0.0.1, in threads of this process."""

import socket
import threading
import time
from contextlib import contextmanager
from typing import NamedTuple

import httpx

from pico.app.server import LIMITS, Service, listen, server


class Served(NamedTuple):
    address: str
    service: Service
    client: httpx.Client

    def post(self, path: str, body=None, **how) -> httpx.Response:
        return self.client.post(path, json=body, **how)

    def complete(self, **fields) -> httpx.Response:
        return self.post("/v1/completions", {"model": self.service.name, "prompt": "one two", **fields})


@contextmanager
def serving(model, name="tiny", chat=True, key=None, limits=LIMITS):
    opened = listen("127.0.0.1", 0)
    service = Service(model, name, chat, key, limits)
    http = server(service)
    threads = [
        threading.Thread(target=service.engine.run, daemon=True),
        threading.Thread(target=http.run, kwargs=dict(sockets=[opened]), daemon=True),
    ]
    for thread in threads:
        thread.start()
    address = f"http://127.0.0.1:{opened.getsockname()[1]}"
    try:
        with httpx.Client(base_url=address, timeout=120) as client:
            yield Served(address, service, client)
    finally:
        http.should_exit = True
        service.engine.close()
        for thread in threads:
            thread.join(30)


def raw(address: str, data: bytes, patience: float = 1.0) -> bytes:
    """What a server says to these bytes, up to its end. Where it waits for more, it learns that none comes."""
    host, _, port = address.removeprefix("http://").partition(":")
    said = b""
    with socket.create_connection((host, int(port)), timeout=patience) as connection:
        connection.sendall(data)
        while True:
            try:
                piece = connection.recv(65536)
            except TimeoutError:
                connection.settimeout(60)
                connection.shutdown(socket.SHUT_WR)
                continue
            except ConnectionResetError:
                return said
            if not piece:
                return said
            said += piece


def wait_for(true) -> None:
    """Until a thread or the server has come so far."""
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)
