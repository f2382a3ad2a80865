"""The demo: it trains, writes and explains, and says when the time is too short to learn anything."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from pico.base.config import TrainConfig
from pico.runs.folder import read_config


@pytest.mark.parametrize("minutes, speed, said", [(3, 0.1, "about 17 steps"), (3, 5, ""), (40, 0.1, "about 239 steps")])
def test_a_training_too_short_to_learn_says_so_once(minutes, speed, said, capsys):
    from pico.app.demo import PaceDisplay

    pace = PaceDisplay(Path("models/demo"), minutes)
    line = dict(loss=1.0, train_bpb=1.0, perplexity=2.0, kB_per_s=1.0, routed=0.2)
    for step in range(1, int(minutes * 60 * speed)):
        pace.step({**line, "step": step, "seconds": 9 + step / speed}, 0.1, None, None)
    out = " ".join(capsys.readouterr().err.split())
    assert out.count("1,000 steps") == bool(said) == pace.short
    assert said in out and (not said or "demo models/demo --minutes 167" in out)


@pytest.mark.slow
def test_the_demo_trains_writes_and_explains(cli, home, monkeypatch):
    from pico.app import demo
    from pico.data import corpus

    monkeypatch.setattr(corpus, "PER_EPOCH", 20)
    monkeypatch.setattr(corpus, "VALIDATION", 5)
    monkeypatch.setattr(demo, "preset", lambda name: read_config(home / "model"))
    small = TrainConfig(max_steps=20, batch_size=2, context_len=32)  # however fast the machine is
    monkeypatch.setattr(demo, "TrainConfig", SimpleNamespace(build=lambda max_minutes: small))
    monkeypatch.setattr(demo, "ENOUGH", 10**6)
    for run, scored in (("run-1", 3000), ("run-2", 60)):  # a second demo adds a run; no story has 60 bytes
        monkeypatch.setattr(demo, "SCORED", scored)
        result = cli("demo shown --minutes 0.005")
        assert result.code == 0, result.err
        assert result.out.replace("_", "").count("Once upon a time") == 3 and "_" in result.out
        assert "1,000,000 steps" in result.err and "The model that comes with Pico" in result.err
        assert "bits per byte" in result.err and "train shown my-run" in result.err
        assert ("entropy of their grammar" in result.err) == (scored > 60)
        for name in ("loss.png", "report.html", "metrics.jsonl"):
            assert (home / "shown" / run / name).stat().st_size > 0
