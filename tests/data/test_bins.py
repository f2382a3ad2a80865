"""X.bin with X.json: its documents, read where they lie, and one line for whatever does not fit."""

import json

import pytest

from pico.base.config import DataConfig
from pico.base.errors import PicoError
from pico.data.open import open_data
from pico.data.reading import Reading

DOCUMENTS = [b"\0\xff\xfe", b"\xef\xbb\xbf", b"\n", b"PK\x03\x04"]  # nothing is dropped, or taken for a mark


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("PICO_CACHE", str(tmp_path_factory.mktemp("cache")))


def write_pair(folder, name="train", documents=DOCUMENTS):
    (folder / f"{name}.bin").write_bytes(b"".join(documents))
    index = {"what": "bytes", "documents": [[len(each), f"label {i}"] for i, each in enumerate(documents)]}
    (folder / f"{name}.json").write_text(json.dumps(index))
    return folder / f"{name}.bin"


def read(path, **settings):
    training, validation = open_data(DataConfig(dataset=str(path), **settings), 0)
    return [*training], [*validation]


def all_of(path):
    training, validation = read(path, validation_size=1)
    return sorted(training + validation)


@pytest.mark.parametrize("form", ["auto", "bin"])
def test_a_folder_has_its_splits_and_other_files_are_left_out(tmp_path, form):
    write_pair(tmp_path)
    write_pair(tmp_path, "valid", [b"\x80", b"\x81\x82"])
    (tmp_path / "notes.rtf").write_text("of whoever made it")
    reading = Reading()
    config = DataConfig(dataset=str(tmp_path), format=form)
    assert list(map(list, open_data(config, 0, reading))) == [DOCUMENTS, [b"\x80", b"\x81\x82"]]
    assert "train.bin" in "".join(reading.lines()) and ".rtf" in reading.passed_over()


def test_one_file_and_several_give_the_same_documents(tmp_path, monkeypatch):
    monkeypatch.setattr("pico.data.storage.SMALL", 0)  # so that copies go to the cache, where they are found again
    one = write_pair(tmp_path, "one")
    assert all_of(one) == sorted(DOCUMENTS)
    write_pair(tmp_path, "two", [b"\1" * 5])
    assert all_of(tmp_path) == sorted([*DOCUMENTS, b"\1" * 5])
    write_pair(tmp_path, "two", [b"\1" * 2, b"\1" * 3])  # the .bin is as it was: a copy in the cache is not
    assert all_of(tmp_path) == sorted([*DOCUMENTS, b"\1" * 2, b"\1" * 3])


def test_read_as_bytes_it_is_a_file_like_any_other(tmp_path):
    file = write_pair(tmp_path)
    assert read(file, format="bytes", validation_size=0.2)[0] == [file.read_bytes()[:-2]]


def test_a_table_beside_a_bin_is_a_table(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([{"text": "one"}, {"text": "two"}]))
    (tmp_path / "a.bin").write_bytes(b"\0\1")
    assert all_of(tmp_path) == [b"one", b"two"]


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda f: write_pair(f, documents=[b"ab"]).write_bytes(b"abc"), "lengths add up to 2 bytes, train.bin has 3"),
        (lambda f: (f / "train.json").write_text('{"documents": [[3, "a"], [1'), "train.json cannot be read as JSON"),
        (lambda f: (f / "train.json").write_text('{"documents": [[3, "a"], -1]}'), "document 2 is -1: expected"),
        (lambda f: (f / "train.json").write_text('{"documents": [[3.5, ""]]}'), r"document 1 is \[3.5, ''\]: expected"),
        (lambda f: (f / "train.json").write_text('{"documents": [[-1, ""], [9, ""]]}'), r"document 1 is \[-1, ''\]"),
        (lambda f: (f / "train.json").write_text('{"documents": [["a", 8]]}'), r"document 1 is \['a', 8\]: expected"),
        (lambda f: (f / "train.json").write_text('{"documents": {"a": 8}}'), "document 1 is {'a': 8}: expected"),
        (lambda f: (f / "train.json").write_text('{"documents": []}'), "0 lengths add up to 0 bytes, train.bin has 11"),
        (lambda f: (f / "train.bin").unlink(), "train.json says where documents end in train.bin, which is not beside"),
        (lambda f: (f / "more.bin").write_bytes(b"x"), "more.bin has no more.json beside it"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_line(tmp_path, damage, message):
    write_pair(tmp_path)
    damage(tmp_path)
    with pytest.raises(PicoError, match=message) as caught:
        read(tmp_path)
    assert "\n" not in str(caught.value)


def test_what_stands_before_the_lengths_may_be_long(tmp_path):
    file = write_pair(tmp_path)
    index = json.loads(file.with_suffix(".json").read_text())
    file.with_suffix(".json").write_text("\ufeff" + json.dumps(index | {"what": "bytes " * 20_000}))
    assert all_of(tmp_path) == sorted(DOCUMENTS)


def test_empty_documents_are_counted_as_such(tmp_path):
    write_pair(tmp_path, documents=[b"", b"ab", b"", b"cd"])
    reading = Reading()
    open_data(DataConfig(dataset=str(tmp_path)), 0, reading)
    assert reading.passed_over() == "empty documents (2)"


def test_on_the_hub_the_index_comes_with_its_file(tmp_path, monkeypatch):
    import huggingface_hub

    for name in "train", "valid":
        write_pair(tmp_path, name)
    hub, asked = tmp_path / "hub", []

    def snapshot_download(_, allow_patterns, **rest):
        asked.extend(allow_patterns)
        hub.mkdir()
        for name in allow_patterns:
            (tmp_path / name).rename(hub / name)
        return str(hub)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr("pico.data.hub._reachable", lambda name: True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PicoError, match="--dataset-format bin of a dataset on the Hub: name its files with"):
        read("owner/pixels", format="bin")
    files = dict(train_file="train.bin", validation_file="valid.bin")
    assert read("owner/pixels", **files) == (DOCUMENTS, DOCUMENTS)
    assert asked == ["train.bin", "valid.bin", "train.json", "valid.json"]


def test_a_format_that_was_asked_for_is_missed(tmp_path):
    file = write_pair(tmp_path)
    with pytest.raises(PicoError, match=r"train.json says where documents end in train.bin: give that one"):
        read(file.with_suffix(".json"))
    file.with_suffix(".json").unlink()
    for place in tmp_path, file:
        with pytest.raises(PicoError, match=r"train.bin has no train.json beside it"):
            read(place, format="bin")
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(PicoError, match=r"--dataset-format bin: there is no .bin file"):
        read(tmp_path / "a.txt", format="bin")
