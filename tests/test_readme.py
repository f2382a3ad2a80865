"""What README shows is what there is."""

import re
from pathlib import Path

import typer.main

import picolm
from pico import TrainConfig, preset
from pico.config import DataConfig
from pico.folder import create
from pico.train import train

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_the_python_example_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = preset("tiny", dim=16, latent_num_blocks=1, fb_num_blocks=1, next_tokens=2, ngram_rows=64)
    create("models/my-model", config)
    data = DataConfig(dataset="stories", validation_size=2)
    train("models/my-model", "my-train-run", data, TrainConfig(max_steps=1, context_len=32), quiet=True, device="cpu")
    capsys.readouterr()
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(example, {})
    assert "tensor([[" in capsys.readouterr().out


def test_every_command_named_exists():
    named = set(re.findall(r"^\| `(\w+)", README, re.MULTILINE))
    assert named == set(typer.main.get_command(picolm.app).commands)


def test_it_opens_with_the_two_lines():
    lines = README.splitlines()[1:3]
    assert lines[0].startswith("pip install uv && uv run python picolm.py demo ")
    assert lines[1].startswith("pip install uv && uv run pytest ")
