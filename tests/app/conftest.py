"""A folder with a text and a run, and the command line in it."""

import pytest
from command_line import SMALL, TRAIN, Answer

import picolm

TEXT = "the cat sat on the mat and the dog sat on the cat; "


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with text, a model and a run of four steps, made through the command line. A module may have another."""
    home = tmp_path_factory.mktemp("home")
    (home / "text.txt").write_text(TEXT * 40)
    (home / "rows.jsonl").write_text('{"n": 1, "story": "one"}\n{"n": 2, "story": "two"}\n')
    (home / "empty.txt").write_text("")
    assert picolm.main(["init", f"{home}/model", *SMALL.split()]) == 0
    assert picolm.main(["train", f"{home}/model", "a", f"{home}/text.txt", *TRAIN.split(), "--device", "cpu"]) == 0
    return home


@pytest.fixture
def cli(home, capsysbinary, monkeypatch):
    """cli("run model a --seed 1", "--prompt", "a b") -> Answer; paths start at `home`."""
    monkeypatch.chdir(home)

    def call(line: str, *more: str) -> Answer:
        capsysbinary.readouterr()
        code = picolm.main([*line.split(), *more])
        raw, err = capsysbinary.readouterr()
        return Answer(code, raw.decode(errors="replace"), err.decode(), raw)

    return call
