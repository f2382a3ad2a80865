"""Datasets of the Hub, through a folder laid out like one of its repositories; and what one without network sees."""

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
from helpers import same_batch, write_parquet

from pico.base.config import DataConfig
from pico.base.errors import PicoError
from pico.data import hub
from pico.data import open as data
from pico.data.open import Batches, open_data, open_evaluation
from pico.data.reading import Reading

datasets = pytest.importorskip("datasets")

CARD = """---
license: cc0-1.0
configs:
- config_name: main
  default: true
  data_files:
  - split: train
    path: main/part-*
  - split: validation
    path: main/held.parquet
- config_name: other
  data_files:
  - split: train
    path: other/*.parquet
---
# A dataset
"""
STORIES = [f"story {i} " + "abc " * (i % 7) for i in range(120)]


@pytest.fixture(autouse=True)
def caches(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("PICO_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
    monkeypatch.setattr(hub, "BLOCK_DOCUMENTS", 16)


@pytest.fixture
def repository(tmp_path):
    """Two configs; the default has three shards of 40 rows for training and two rows for validation."""
    root = tmp_path / "owner" / "tales"
    (root / "main").mkdir(parents=True)
    (root / "other").mkdir()
    (root / "README.md").write_text(CARD)
    for shard in range(3):
        rows = STORIES[40 * shard : 40 * shard + 40]
        write_parquet(root / "main" / f"part-{shard}.parquet", id=list(range(40)), story=rows)
    write_parquet(root / "main" / "held.parquet", id=[1, 2], story=["held one", "held two"])
    write_parquet(root / "other" / "a.parquet", a=STORIES, b=["no"] * len(STORIES))
    return root


def encoded(texts):
    return [text.encode() for text in texts]


def first_pass(stream):
    """The documents of a stream's first pass."""
    documents = []
    while True:
        block = stream.block(0)
        if stream.place["pass"]:
            return documents
        documents += list(block)


@pytest.mark.parametrize("streaming", [False, True])
def test_default_config_of_a_repository(repository, streaming):
    config = DataConfig(dataset=str(repository), streaming=streaming)
    train, validation = open_data(config, seed=0)
    assert (first_pass(train) if streaming else list(train)) == encoded(STORIES)
    assert list(validation) == list(open_evaluation(config)) == [b"held one", b"held two"]


@pytest.mark.parametrize("streaming", [False, True])
def test_other_config_column_and_held_out_rows(repository, streaming):
    config = DataConfig(dataset=f"{repository}:other", column_name="a", streaming=streaming, validation_size=0.1)
    train, validation = open_data(config, seed=0)
    train = first_pass(train) if streaming else list(train)
    assert sorted(train + list(validation)) == sorted(encoded(STORIES))
    assert 5 <= len(validation) <= 20 and list(open_evaluation(config)) == list(validation)
    everything = DataConfig(dataset=f"{repository}:other", column_name="a", streaming=streaming)
    assert list(open_evaluation(everything)) == encoded(STORIES)


def test_streamed_hold_out_of_a_number_of_rows(repository):
    config = DataConfig(dataset=f"{repository}:other", column_name="a", streaming=True, validation_size=7)
    train, validation = open_data(config, seed=0)
    assert list(validation) == encoded(STORIES[:7]) and first_pass(train) == encoded(STORIES[7:])


@pytest.mark.parametrize("streaming", [False, True])
def test_split_flags_and_separator(repository, streaming):
    config = DataConfig(
        dataset=str(repository),
        train_split="validation",
        validation_split="train",
        document_separator=" ",
        streaming=streaming,
    )
    train, validation = open_data(config, seed=0)
    assert (first_pass(train) if streaming else list(train)) == [b"held", b"one", b"held", b"two"]
    assert list(validation) == [word for text in encoded(STORIES) for word in text.split(b" ") if word]


def test_file_flags_read_the_files_themselves(repository):
    config = DataConfig(dataset=str(repository), train_file="main/part-[01].parquet", validation_file="other/a.parquet")
    with pytest.raises(PicoError, match=r"several columns of .*a.parquet"):
        open_data(config, seed=0)
    config = config.model_copy(update={"validation_file": "main/part-2.parquet"})
    train, validation = open_data(config, seed=0)
    assert (list(train), list(validation)) == (encoded(STORIES[:80]), encoded(STORIES[80:]))


@pytest.mark.parametrize(("batch_size", "held"), [(1, None), (6, 0.3), (40, None)])
def test_stream_resumes_exactly_at_every_step(repository, batch_size, held):
    name = f"{repository}:other" if held else str(repository)
    config = DataConfig(dataset=name, column_name="a" if held else None, validation_size=held, streaming=True)

    def batches():
        return Batches(open_data(config, 0)[0], 32, 4, batch_size, seed=3)

    whole, states, rows = batches(), [], []
    while whole.epoch < 2:
        states.append(json.dumps(whole.state_dict()))
        rows.append(next(whole))
    assert whole.chunks_per_epoch is None
    for step in range(0, len(states) - 1, max(1, len(states) // 6)):
        resumed = batches()
        resumed.load_state_dict(json.loads(states[step]))
        for row in rows[step : step + 3]:
            assert same_batch(next(resumed), row)


def test_stream_is_shared_by_processes(repository):
    def batches(rank, world):
        return Batches(open_data(DataConfig(dataset=str(repository), streaming=True), 0)[0], 32, 4, 6, 0, rank, world)

    whole, shards = batches(0, 1), [batches(rank, 3) for rank in range(3)]
    for _ in range(40):
        expected = next(whole)
        assert all(same_batch(next(shard), [x[2 * i : 2 * i + 2] for x in expected]) for i, shard in enumerate(shards))


def test_fingerprints(repository):
    def fingerprint(**flags):
        return open_data(DataConfig(dataset=str(repository), **flags), 0)[0].fingerprint

    prints = [
        fingerprint(streaming=s, **f) for s in (False, True) for f in ({}, dict(train_file="main/part-0.parquet"))
    ]
    assert fingerprint(streaming=True) == fingerprint(streaming=True, column_name="story") == prints[2]
    assert fingerprint() == prints[0] and len({*prints}) == 3  # named files are read, not streamed


@pytest.mark.parametrize("streaming", [False, True])
def test_errors_of_a_repository(repository, streaming):
    for dataset, flags, message in [
        (repository, dict(column_name="text"), r"no column 'text' in dataset .*, it has id \(int64\), story \(text\)"),
        (repository, dict(column_name="id"), r"column 'id' of dataset .* holds int64, expected text or bytes"),
        (f"{repository}:other", {}, r"several columns of dataset .*, it has a \(text\), b \(text\)"),
        (f"{repository}:third", {}, "cannot read dataset .*third"),
        (repository, dict(train_split="extra"), "no split 'extra' in"),
        (repository, dict(validation_split="test"), "no split 'test' in .*, it has train, validation"),
    ]:
        with pytest.raises(PicoError, match=message) as error:
            open_data(DataConfig(dataset=str(dataset), streaming=streaming, **flags), seed=0)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("streaming", [False, True])
def test_changed_and_broken_files_of_a_repository(repository, streaming):
    def read():
        train, _ = open_data(DataConfig(dataset=str(repository), streaming=streaming), seed=0)
        return first_pass(train) if streaming else list(train)

    assert read() == encoded(STORIES)
    write_parquet(repository / "main" / "part-1.parquet", id=[1], story=["changed"])
    assert read() == encoded([*STORIES[:40], "changed", *STORIES[80:]])
    (repository / "main" / "part-1.parquet").write_bytes(b"PAR1 broken")
    with pytest.raises(PicoError, match=r"cannot read (on in )?dataset .*tales'"):
        read()


def test_config_must_be_named_where_there_is_no_default(repository):
    (repository / "README.md").write_text(CARD.replace("  default: true\n", ""))
    with pytest.raises(PicoError, match=r"main.*other.*:CONFIG"):
        open_data(DataConfig(dataset=str(repository)), seed=0)


def test_repositories_are_told_from_plain_folders(repository, tmp_path):
    assert hub.is_repository(repository) and not hub.is_repository(tmp_path)
    (repository / "README.md").write_text("# No metadata\nconfigs: none\n")
    assert not hub.is_repository(repository)
    assert hub.is_name("owner/name-1.0") and hub.is_name("imdb") and hub.is_name("a/b:c")
    assert not any(hub.is_name(name) for name in ("../a", "/a/b", "a/b/c", "./a", "~/a", "a b", ""))


# --- the Hub itself --------------------------------------------------------------------------------------------------


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


def test_streaming_does_not_change_local_files(tmp_path):
    (tmp_path / "a.txt").write_text("some text")
    train, _ = open_data(DataConfig(dataset=str(tmp_path / "a.txt"), streaming=True), seed=0)
    assert isinstance(train, data.Documents)


@pytest.mark.parametrize("streaming", [False, True])
def test_columns_in_a_struct(tmp_path, streaming):
    rows = [{"text": text, "n": 1} for text in ("one", None, "three")]
    write_parquet(tmp_path / "a.parquet", meta=[*rows, None])
    (tmp_path / "README.md").write_text("---\nconfigs:\n- config_name: main\n  data_files: a.parquet\n---\n")
    for column in None, "meta.text":
        config = DataConfig(dataset=str(tmp_path), column_name=column, streaming=streaming, validation_size=1)
        reading = Reading()
        train, validation = open_data(config, 0, reading)
        assert sorted([*(train.block(0) if streaming else train), *validation]) == encoded(["one", "three"])
        assert "column 'meta.text'" in "\n".join(reading.lines())
    with pytest.raises(PicoError, match=r"no column 'meta' in .*, it has meta.text \(text\), meta.n \(int64\)"):
        open_data(config.model_copy(update={"column_name": "meta"}), 0)


# --- what is said -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streaming", [False, True])
def test_what_is_read_of_a_repository_is_said(repository, streaming):
    write_parquet(repository / "main" / "held.parquet", id=[1, 2, 3], story=["held one", None, "held two"])
    config = DataConfig(dataset=str(repository), streaming=streaming, document_separator="||")
    reading, scored = Reading(), Reading()
    open_data(config, 0, reading)
    open_evaluation(config, reading=scored)
    lines = "\n".join(reading.lines())
    train = "a stream, split 'train'; column 'story'" if streaming else "120 documents, "
    assert f"training    {train}" in lines and "column 'story'" in lines and "left out    rows without text" in lines
    assert "validation  2 documents, 16 bytes; " in lines
    assert scored.lines()[-2].startswith("text        2 documents, 16 bytes; split 'validation'")
    assert scored.lines()[-1] == "left out    split 'train', rows without text"
    for warning in reading.warnings + scored.warnings:
        assert warning.startswith("--document-separator '||' never occurs in ")
    assert "2 documents, 16 bytes of text" in reading.warnings[-1] and len(scored.warnings) == 1


# --- data outside the folder ------------------------------------------------------------------------------------------

OUTSIDE = ["../secret/*.txt", "main/../../secret/a.txt", "/etc/*.txt", "..\\secret\\a.txt", "C:/secret/a.txt",
           "https://example.org/a.txt", "hf://datasets/a/b/c.txt", "~/a.txt"]  # fmt: skip


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("file", ["README.md", ".huggingface.yaml"])
@pytest.mark.parametrize("path", OUTSIDE)
def test_metadata_that_leads_out_of_its_folder_is_not_followed(repository, streaming, file, path):
    (repository.parent / "secret").mkdir()
    (repository.parent / "secret" / "a.txt").write_text("nobody should read this\n")
    front = "configs:\n- config_name: main\n  data_files:\n  - split: train\n    path:\n    - main/part-*\n    - '{}'\n"
    card = front.format(path)
    if file == "README.md":
        card = f"---\n{card}---\n# Innocent\n"
    (repository / file).write_text(card)
    for dataset in str(repository), f"{repository}:main":
        with pytest.raises(PicoError, match=rf"{file} of .*tales names data outside its folder") as error:
            open_data(DataConfig(dataset=dataset, streaming=streaming), seed=0)
        assert "\n" not in str(error.value) and path in str(error.value)


def test_data_dir_that_leads_out_and_links_of_the_user(repository, tmp_path):
    card = "---\nconfigs:\n- config_name: main\n  data_dir: {}\n---\n"
    (repository / "README.md").write_text(card.format("../elsewhere"))
    with pytest.raises(PicoError, match="names data outside its folder"):
        open_data(DataConfig(dataset=str(repository)), seed=0)
    (repository / "other" / "a.parquet").rename(tmp_path / "blob")  # as the Hub's own cache lies
    (repository / "other" / "a.parquet").symlink_to(tmp_path / "blob")
    (repository / "README.md").write_text(card.format("other"))
    train, _ = open_data(DataConfig(dataset=str(repository), column_name="a"), seed=0)
    assert len(train) == 119


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


def test_a_stream_goes_on_with_another_number_of_processes(repository):
    """What splitting it between processes would break."""

    def batches(rank, world):
        return Batches(open_data(DataConfig(dataset=str(repository), streaming=True), 0)[0], 32, 4, 6, 0, rank, world)

    whole, shards = batches(0, 1), [batches(rank, 2) for rank in range(2)]
    for _ in range(25):
        next(whole), [next(shard) for shard in shards]
    state = json.loads(json.dumps(shards[1].state_dict()))
    shards = [batches(rank, 3) for rank in range(3)]
    for shard in shards:
        shard.load_state_dict(state)
    for _ in range(25):
        expected = next(whole)
        assert all(same_batch(next(shard), [x[2 * i : 2 * i + 2] for x in expected]) for i, shard in enumerate(shards))
