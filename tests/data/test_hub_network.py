"""The Hub itself: without network, with answers of our own, and what is downloaded once and read again."""

import http.server
import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import ClassVar

import pytest
from repositories import STORIES, encoded, first_pass

from pico.base.config import DataConfig
from pico.base.errors import PicoError
from pico.data.open import open_data

datasets = pytest.importorskip("datasets")

pytestmark = pytest.mark.usefixtures("caches")


@pytest.fixture
def unplugged(monkeypatch):
    """No name resolves and nobody sleeps: retries would show as a failure."""

    def refuse(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    def never(seconds):
        raise AssertionError(f"waits {seconds} s for a network that is not there")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr("time.sleep", never)


@pytest.mark.parametrize("flags", [{}, dict(streaming=True), dict(train_file="a.txt", validation_file="b.txt")])
def test_without_network(unplugged, tmp_path, monkeypatch, flags):
    monkeypatch.chdir(tmp_path)
    for name in "owner/name", "storeys":
        with pytest.raises(PicoError, match=r"Hugging Face Hub.*local file or folder, or 'stories'") as error:
            open_data(DataConfig(dataset=name, column_name="text", **flags), seed=0)
        assert "\n" not in str(error.value) and name in str(error.value)


def test_without_network_what_was_downloaded_before_is_used(unplugged, monkeypatch):
    def load_dataset(path, name, **flags):
        from huggingface_hub import constants

        assert constants.HF_HUB_OFFLINE and datasets.config.HF_HUB_OFFLINE and path == "owner/name"
        return datasets.DatasetDict(train=datasets.Dataset.from_dict({"text": ["cached"] * 3}))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    train, validation = open_data(DataConfig(dataset="owner/name"), seed=0)
    assert len(train) == 2 and len(validation) == 1
    assert not datasets.config.HF_HUB_OFFLINE


def answer(monkeypatch, status, headers=()):
    """The Hub's first answer to whatever is asked."""
    import huggingface_hub
    from huggingface_hub import errors

    def dataset_info(self, name, **_):
        if status == 200:
            return None
        raise errors.RepositoryNotFoundError.__new__(errors.RepositoryNotFoundError)

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)


def test_name_that_the_hub_does_not_know(monkeypatch, tmp_path):
    answer(monkeypatch, 404)
    with pytest.raises(PicoError, match="no dataset 'owner/name' on the Hugging Face Hub, nor a file or folder"):
        open_data(DataConfig(dataset="owner/name"), seed=0)


def test_hub_name_with_network(repository, monkeypatch):
    """What the Hub would send is the repository itself."""
    answer(monkeypatch, 200)
    real = datasets.load_dataset

    def load_dataset(path, name, **flags):
        assert path == "owner/tales"
        return real(str(repository), name, **flags)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    train, validation = open_data(DataConfig(dataset="owner/tales"), seed=0)
    assert (list(train), list(validation)) == (encoded(STORIES), [b"held one", b"held two"])
    train, _ = open_data(DataConfig(dataset="owner/tales:other", column_name="b", streaming=True), seed=0)
    assert first_pass(train)[:2] == [b"no", b"no"]
    flags = dict(train_file="main/part-0.parquet", validation_file="main/held.parquet")
    train, validation = open_data(DataConfig(dataset="owner/tales", streaming=True, **flags), seed=0)
    assert (first_pass(train), len(validation)) == (encoded(STORIES[:40]), 2)


def test_files_of_the_hub_are_downloaded_and_read_as_local_ones(repository, monkeypatch):
    import huggingface_hub

    answer(monkeypatch, 200)
    asked = []

    def snapshot_download(name, allow_patterns, **_):
        asked.append((name, allow_patterns))
        return str(repository)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    flags = dict(train_file="main/part-0.parquet", validation_file="main/held.parquet")
    train, validation = open_data(DataConfig(dataset="owner/tales", **flags), seed=0)
    assert (list(train), len(validation)) == (encoded(STORIES[:40]), 2)
    assert asked == [("owner/tales", ["main/part-0.parquet", "main/held.parquet"])]


class Answers(http.server.BaseHTTPRequestHandler):
    """As much of the Hub as downloading one dataset asks for."""

    rows = b"".join(b'{"text": "row %d"}\n' % i for i in range(200))
    card = b"---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: train.jsonl\n---\n"
    files: ClassVar = {"README.md": card, "train.jsonl": rows}

    def do_GET(self):
        path = self.path.split("?")[0].removeprefix("/api")
        listing = [{"type": "file", "oid": name, "size": len(data), "path": name} for name, data in self.files.items()]
        if path.startswith(("/datasets/owner/tales/tree/", "/datasets/owner/tales/paths-info/")):
            self.answer(json.dumps(listing).encode())
        elif path.startswith("/datasets/owner/tales/resolve/"):
            name = path.split("/")[-1]
            self.answer(self.files.get(name), ("ETag", f'"{name}"'), ("X-Repo-Commit", "a" * 40))
        elif path.startswith("/datasets/owner/tales"):
            names = [{"rfilename": name} for name in self.files]
            self.answer(json.dumps({"id": "owner/tales", "sha": "a" * 40, "tags": [], "siblings": names}).encode())
        else:
            self.answer(None)

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    do_HEAD = do_GET

    def answer(self, data, *headers):
        self.send_response(404 if data is None else 200)
        missing = [("X-Error-Code", "EntryNotFound")] if data is None else []
        for header in *headers, *missing, ("Content-Type", "application/json"), ("Content-Length", len(data or b"")):
            self.send_header(header[0], str(header[1]))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data or b"")

    def log_message(self, *_):
        pass


DOWNLOADING = """
import json, sys
from pico.base.config import DataConfig
from pico.data.open import open_data
found = []
for flags in {}, {"train_file": "train.jsonl"}:
    train, validation, *_ = open_data(DataConfig(dataset="owner/tales", **flags), 0)
    found.append([train.fingerprint, len(train), len(validation)])
print(json.dumps(found))
"""


@pytest.mark.slow
def test_what_was_downloaded_once_is_the_same_without_network(tmp_path):
    """The real libraries and a small Hub of our own, which is gone when a second process wants the same data."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    named = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    named |= {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "hf")}
    named |= {"PICO_CACHE": str(tmp_path / "pico"), "PYTHONPATH": str(Path(__file__).parents[2])}

    def opened():
        return subprocess.run([sys.executable, "-c", DOWNLOADING], env=named, capture_output=True, text=True)

    try:
        online = opened()
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert online.returncode == 0, online.stderr
    offline = opened()
    assert offline.returncode == 0, offline.stderr
    assert json.loads(offline.stdout) == json.loads(online.stdout)
    assert [counts[1:] for counts in json.loads(online.stdout)] == [[198, 2], [198, 2]]
