"""Which files of a folder are read, as what, and for which split."""

from helpers import write

from pico.sources import find_files, split_name


def found(root, raw=False):
    splits, as_text = find_files(root, raw)
    return {split: [file.relative_to(root).as_posix() for file in files] for split, files in splits.items()}, as_text


def fill(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        write(root / name, f"text of {name}")


def test_split_names():
    for name, split in [
        ("train.jsonl", "train"), ("training.txt", "train"),
        ("valid.jsonl", "validation"), ("my-dev.csv", "validation"),
        ("val/a.txt", "validation"), ("data/validation-00000-of-00001.parquet", "validation"), ("test_2.txt", "test"),
        ("TinyStoriesV2-GPT4-train.txt", "train"), ("trainer.txt", ""), ("contest.txt", ""), ("valley.txt", ""),
    ]:  # fmt: skip
        assert split_name(name) == split, name


def test_data_folder_with_splits(tmp_path):
    fill(tmp_path, "train.jsonl", "sub/valid.jsonl", "more.jsonl", "README.md", "LICENSE", "prepare.py", ".git/x.txt")
    assert found(tmp_path) == ({"train": ["more.jsonl", "train.jsonl"], "validation": ["sub/valid.jsonl"]}, False)


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
