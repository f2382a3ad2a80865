"""What README shows is what there is: its commands run, on small sizes, and its figures are those of RESULTS.md."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
import typer.main

import picolm
from pico.app import demo

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SHELL = "".join(re.findall(r"```sh\n(.*?)```", README, re.DOTALL))
COMMANDS = re.findall(r"^(?:pip install uv && )?uv run python picolm\.py (.*)$", SHELL, re.MULTILINE)

SHORT = "--max-steps 2 --context-len 64 --device cpu"
SMALL = {  # README's words, and what the test types instead
    "demo ": "demo --minutes 0.02 ",
    "models/tinystories best": "models/tinystories best --max-bytes 40 --device cpu",
    "my-text.txt --max-minutes 30": f"my-text.txt --batch-size 2 {SHORT}",
    "my-text.txt --report page.html": "my-text.txt --report page.html --max-bytes 200 --device cpu",
    "--dim 372 --latent-num-blocks 8 --fb-att-window-size 32": "--dim 24 --latent-num-blocks 1 --ngram-rows 64",
    "roneneldan/TinyStories --dataset-column-name text --batch-size 8": f"my-text.txt --batch-size 2 {SHORT}",
    "models/mine first --prompt": "models/mine first --max-bytes 40 --device cpu --prompt",
    "my-model my-train-run --temperature": "my-model my-train-run --max-bytes 40 --device cpu --temperature",
}


@pytest.mark.slow
def test_its_commands_run(tmp_path, monkeypatch, capfd):
    shutil.copytree(ROOT / "models" / "tinystories", tmp_path / "models" / "tinystories")
    (tmp_path / "my-text.txt").write_text("The cat sat on the mat, quietly. " * 200)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "SCORED", 1500)
    used = set()
    for command in COMMANDS:
        for words in [words for words in SMALL if words in command]:
            command = command.replace(words, SMALL[words])
            used.add(words)
        assert picolm.main(shlex.split(command, comments=True)) == 0, command
        assert "Once upon a time" in capfd.readouterr().out or not command.startswith("run"), command
    assert used == set(SMALL) and len(COMMANDS) == 9
    assert (tmp_path / "page.html").exists()


def test_the_python_example_runs(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(example, {})
    assert capsys.readouterr().out.endswith("of these bytes went through the latent blocks\n")


def test_every_command_named_exists():
    named = set(re.findall(r"^\| `(\w+)", README, re.MULTILINE))
    assert named == set(typer.main.get_command(picolm.app).commands)


def test_it_has_the_two_lines_of_a_newcomer_and_fits_three_screens():
    assert "\npip install uv && uv run python picolm.py demo " in README
    assert "\npip install uv && uv run pytest " in README
    assert len(README.splitlines()) <= 150


def test_its_figures_are_those_of_the_results():
    results = README[README.index("## Results") : README.index("## The tree")]
    figures = re.findall(r"\d\.\d+", results)
    source = (ROOT / "RESULTS.md").read_text(encoding="utf-8")
    assert len(figures) > 4
    assert [figure for figure in figures if figure not in source] == []


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in ROOT.glob("docs/*.md"))])
def test_links_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)#:]+)\)", (ROOT / page).read_text(encoding="utf-8"))
    assert [t for t in targets if not (ROOT / page).parent.joinpath(t).exists()] == []


def test_its_tree_is_that_of_the_package():
    rooms = {path.parent.name for path in (ROOT / "pico").glob("*/__init__.py")}
    assert set(re.findall(r"^pico/(\w+)/", README, re.MULTILINE)) == rooms
