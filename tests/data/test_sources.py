"""Which files of a folder are read, as what, and for which split."""

import os
from pathlib import Path

import datasets
import pytest
from helpers import write

from pico.base.errors import PicoError
from pico.data.sources import find_files, find_splits, split_name


def found(root, raw=False):
    files = find_files(root, raw)
    splits = {split: [file.relative_to(root).as_posix() for file in part] for split, part in files.splits.items()}
    return splits, files.raw


def fill(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        write(root / name, f"text of {name}")


def told(*names):
    return {str(name): split for name, split in find_splits(map(Path, names)).items()}


@pytest.mark.parametrize(
    "names",
    [
        {"train.jsonl": "train", "valid.jsonl": "validation", "test.jsonl": "test"},
        {"training.txt": "train", "dev.csv": "validation", "evaluation.csv": "test"},
        {"data/train-00000-of-00002.parquet": "train", "data/test-0.parquet": "test"},
        {"data/train-00000-of-00001-a1b2c3d4e5f60718.parquet": "train"},
        {"data/validation-00000-of-00001.parquet": "validation", "data/validation.00.jsonl.gz": "validation"},
        {"train/0.parquet": "train", "val/a.txt": "validation", "test/en/b.txt": "test", "dev/2.csv": "validation"},
        {"main/train/0.parquet": "train", "main/test/0.parquet": "test"},
        {"train_part_1.csv": "train", "test_set.csv": "test", "valid-data.tsv": "validation", "test_2.txt": "test"},
        {"TinyStories-train.txt": "train", "TinyStories-valid.txt": "validation"},
        {"TinyStories-valid.txt": "validation"},
        {"TinyStoriesV2-GPT4-train.txt": "train", "TinyStoriesV2-GPT4-valid.txt": "validation"},
        {"wiki.train.tokens": "train", "wiki.valid.tokens": "validation", "wiki.test.tokens": "test"},
        {"europarl.train": "train", "europarl.dev": "validation"},
        {"en/my-train-0.csv": "train", "en/my-dev-0.csv": "validation"},
        {"train.tsv": "train", "dev_matched.tsv": "validation", "test_mismatched.tsv": "test"},
        {"books-train/a.txt": "train", "books-test/b.txt": "test"},
    ],
)
def test_splits_are_told_where_data_sets_name_them(names):
    assert told(*names) == names


def test_books_are_no_splits():
    names = ["moby.txt", "test-drive.txt", "dev-diary.txt", "the-turing-test.txt", "trainer.txt", "contest.txt"]
    assert told(*names, "valley.txt", "evaluation-of-art.txt", "val-d-or.txt", "my-dev.csv", "latest.txt") == {}
    assert told("train/moby.txt", "train/test-drive.txt") == {
        "train/moby.txt": "train",
        "train/test-drive.txt": "train",
    }
    assert set(told("night-train.txt", "test-drive.txt").values()) == {"train"}


def test_names_of_splits():
    for name, split in [("valid", "validation"), ("validation_matched", "validation"), ("test_en", "test")]:
        assert split_name(name) == split
    assert split_name("all") == split_name("contest") == split_name("") == ""


def test_every_book_is_read(tmp_path):
    books = [
        "copying-machines.txt",
        "dev-diary.txt",
        "licence-to-sail.txt",
        "moby.txt",
        "readme-to-me.txt",
        "test-drive.txt",
    ]
    fill(tmp_path, *books, "README.md", "LICENSE.txt", "COPYING")
    assert found(tmp_path) == ({"train": books}, False)
    assert find_files(tmp_path).left_out == {"README.md": 1, "LICENSE.txt": 1, "COPYING": 1}


def test_what_is_left_out_is_counted(tmp_path):
    fill(
        tmp_path,
        *(f"{i}.txt" for i in range(6)),
        "a.zip",
        "b.zip",
        "c.tar.gz",
        "d",
        ".git/x",
        ".git/y/z",
        "__pycache__/a.pyc",
    )
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    left_out = {".zip": 2, ".tar.gz": 1, "without ending": 1, "hidden files": 2, "__pycache__": 1, "broken links": 1}
    assert find_files(tmp_path).left_out == left_out
    assert len(found(tmp_path)[0]["train"]) == 6


def test_folders_that_are_not_read_are_said(tmp_path, monkeypatch):
    fill(tmp_path, "a.txt", "sub/b.txt")
    (tmp_path / "up").symlink_to(tmp_path)
    (tmp_path / "again").symlink_to(tmp_path / "sub")
    assert find_files(tmp_path).left_out == {"links to folders": 2}
    assert found(tmp_path)[0] == {"train": ["a.txt", "sub/b.txt"]}
    scan = os.scandir

    def refuse(path):
        if Path(path).name == "sub":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError, match="sub"):
        find_files(tmp_path)


def test_data_folder_with_splits(tmp_path):
    fill(tmp_path, "train.jsonl", "sub/valid.jsonl", "more.jsonl", "README.md", "LICENSE", "prepare.py", ".git/x.txt")
    assert found(tmp_path) == ({"train": ["more.jsonl", "train.jsonl"], "validation": ["sub/valid.jsonl"]}, False)


@pytest.mark.parametrize("kind", [datasets.Dataset, datasets.DatasetDict])
def test_what_save_to_disk_wrote_is_refused_with_the_way_out(tmp_path, kind):
    rows = datasets.Dataset.from_dict({"text": ["one", "two"]})
    (rows if kind is datasets.Dataset else kind(train=rows)).save_to_disk(tmp_path)
    with pytest.raises(PicoError, match=r"was written by save_to_disk, as \.arrow files.*to_parquet"):
        find_files(tmp_path)
    assert find_files(tmp_path, raw=True).splits


def test_folder_of_books(tmp_path):
    fill(tmp_path, "b.txt", "a.txt")
    assert found(tmp_path) == ({"train": ["a.txt", "b.txt"]}, False)


def test_code_folder_is_text_and_has_no_splits(tmp_path):
    fill(tmp_path, "train.py", "test/test_a.py", "package.json", "__pycache__/a.pyc", "README.md")
    write(tmp_path / "picture.png", b"\x89PNG\0\0")
    names = ["README.md", "package.json", "test/test_a.py", "train.py"]
    assert found(tmp_path) == ({"train": names}, True)
    assert found(tmp_path, raw=True) == ({"train": sorted([*names, "picture.png"])}, True)


def test_raw_folder_whose_every_name_is_a_split(tmp_path):
    fill(tmp_path, "train.bin", "val.bin")
    assert found(tmp_path, raw=True) == ({"train": ["train.bin"], "validation": ["val.bin"]}, True)
