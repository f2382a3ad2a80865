"""The atlas: a line for each run that another process or clone goes on from, and a verdict that chose nothing."""

import json
import re
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from training import SMALL

from pico import PicoError
from pico.evaluate.score import Trace
from pico.lab import atlas as module
from pico.lab.atlas import Atlas, estimate_atlas, read_atlas, read_lines, run_atlas
from pico.lab.atlas_measure import contexts, enrichment, sample, unit_agreement
from pico.lab.atlas_page import write_atlas
from pico.lab.atlas_table import atlas_markdown, atlas_verdict, half, judged
from pico.runs.folder import lock
from pico.train import loop

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "experiments/atlas"


@pytest.fixture(autouse=True)
def fast(short_samples, monkeypatch, tmp_path):
    monkeypatch.setattr("pico.lab.atlas_measure.BLOCK", 128)
    monkeypatch.setattr("pico.evaluate.analysis.BLOCK", 128)
    monkeypatch.setenv("PICO_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def values(tmp_path):
    """Two kinds in two folders, three designs, one budget of three steps."""
    cats, pixels = tmp_path / "data/cats", tmp_path / "more/pixels"
    cats.mkdir(parents=True), pixels.mkdir(parents=True)
    lines = [json.dumps({"text": f"{i} cats sat on {i * 7 % 13} mats, purring.\n"}) for i in range(60)]
    for name, part in ("train", lines[:40]), ("valid", lines[40:]):
        (cats / f"{name}.jsonl").write_text("\n".join(part))
        (pixels / f"{name}.bin").write_bytes(bytes(range(0, 256, 2)) * 8)
        (pixels / f"{name}.json").write_text(json.dumps({"documents": [[512, "a"], [512, "b"]]}))
    twin = dict(dim=16, num_blocks=1, att_q_heads=2, att_kv_heads=1, head_dim=8, max_context=32, vocab_size=280)
    return {
        "title": "Small",
        "budget": {"steps": 3},
        "base": {"train": dict(context_len=32, batch_size=4, warmup_steps=1, precision="fp32")},
        "configurations": [
            {"name": "learned", "model": SMALL, "seeds": 1},
            {"name": "every-4th", "model": SMALL | {"router": "stride"}, "seeds": 1},
            {"name": "tokens", "preset": "gpt-tiny", "model": twin, "seeds": 1, "of_text": True},
        ],
        "kinds": [
            {"folder": "cats", "title": "Cats & mats", "text": True, "units": ["words"], "predicted": -0.01},
            {"folder": "pixels", "title": "Pixels", "units": ["rgb"], "predicted": 0.01},
        ],
    }


def read(tmp_path, values, **changes) -> Atlas:
    (tmp_path / "atlas.json").write_text(json.dumps({**values, **changes}))
    return read_atlas(tmp_path / "atlas.json")


def go(plan, tmp_path, runs=None):
    said, folders = [], [tmp_path / "data", tmp_path / "more"]
    ended = run_atlas(plan, tmp_path / "out", folders, runs or plan.runs(), "cpu", True, said.append, tmp_path / "work")
    return *ended, said


@pytest.mark.slow
def test_from_nothing_to_a_page_and_on_from_its_lines(tmp_path, values, monkeypatch):
    plan, out = read(tmp_path, values), tmp_path / "out"
    assert [run.key[:2] for run in plan.runs()] == [
        ("cats", "learned"), ("cats", "every-4th"), ("cats", "tokens"), ("pixels", "learned"), ("pixels", "every-4th"),
    ]  # fmt: skip
    assert go(plan, tmp_path)[:2] == ({}, "finished")
    lines = read_lines(plan, out / "runs.jsonl")
    assert len(lines) == 7 and len((out / "runs.jsonl").read_text().splitlines()) == 7
    assert all(len(line) < 8000 for line in (out / "runs.jsonl").read_text().splitlines())  # one write each
    assert not [*(tmp_path / "work").rglob("*.safetensors")] and not [*(tmp_path / "work/busy").iterdir()]
    learned = lines["cats", "learned", 0]
    assert sum(learned["block_bits"]) / sum(learned["block_bytes"]) == pytest.approx(learned["bits_per_byte"], rel=1e-3)
    assert learned["routing"]["units"].keys() == {"words"} and "routing" not in lines["cats", "every-4th", 0]
    assert learned["flops"] > 0 and learned["steps"] == 3
    assert lines["pixels", "compressors", 0]["compressors"]["xz"]["alone"] > 0

    found = judged(plan, lines)
    write_atlas(found, out)
    page = (out / "atlas.html").read_text()
    assert "Cats &amp; mats" in page and "http" not in page and "<!--" not in page and page.count("<article") == 2
    assert atlas_verdict(found) in (out / "atlas.md").read_text()

    # Another clone has the lines alone, the last of them cut: that one run is made again, and gives the same figures.
    (tmp_path / "work").rename(tmp_path / "elsewhere")
    whole = (out / "runs.jsonl").read_bytes()
    (out / "runs.jsonl").write_bytes(whole[: whole.rindex(b"routed_fraction")])
    assert go(plan, tmp_path)[2][0] == "6 lines of 7 are there, 1 to make"
    again = read_lines(plan, out / "runs.jsonl")
    assert again.keys() == lines.keys()
    assert all(again[key].get("block_bits") == line.get("block_bits") for key, line in lines.items())
    monkeypatch.setattr(loop, "train", None)
    assert go(plan, tmp_path)[:2] == ({}, "finished")  # nothing is trained any more

    # What the file asks for changed: the lines of that configuration no longer count.
    other = values["configurations"][1] | {"model": SMALL | {"router": "random"}}
    changed = read(tmp_path, values, configurations=[values["configurations"][0], other])
    assert {key[1] for key in read_lines(changed, out / "runs.jsonl")} == {"learned", "compressors"}
    # And lines of another text are not mixed with these.
    (tmp_path / "data/cats/valid.jsonl").write_text(json.dumps({"text": "other" * 60}))
    failed, _, _ = go(changed, tmp_path, changed.runs("cats"))
    assert "scores of another text of cats" in failed["cats/every-4th/0"]


def test_lines_are_of_one_preset_and_one_training_text(tmp_path, values, monkeypatch):
    """Not only of what the file says: a preset may change between two clones, and so may the text that is learned."""
    plan = read(tmp_path, values, kinds=values["kinds"][:1])
    only = [run for run in plan.runs() if run.configuration.name == "learned"]
    assert go(plan, tmp_path, only)[:2] == ({}, "finished")
    assert len(read_lines(plan, tmp_path / "out/runs.jsonl")) == 2
    with monkeypatch.context() as patch:
        patch.setitem(module.PRESETS, "tiny", module.PRESETS["tiny"] | {"att_q_heads": 2})
        assert {key[1] for key in read_lines(plan, tmp_path / "out/runs.jsonl")} == {"compressors"}
    with open(tmp_path / "data/cats/train.jsonl", "a") as file:
        file.write("\n" + json.dumps({"text": "one more cat"}))
    failed, _, _ = go(plan, tmp_path, [each for each in plan.runs() if each.configuration.name == "every-4th"])
    assert "scores of another text of cats" in failed["cats/every-4th/0"]


def test_what_another_process_makes_is_not_made_twice(tmp_path, values, monkeypatch):
    """It holds the lock until its line is written, which is when we look at that run again."""
    plan = read(tmp_path, values, kinds=values["kinds"][1:])
    real, calls, held = module.train_one, [], ExitStack()
    monkeypatch.setattr(module, "train_one", lambda *rest: calls.append(rest[1].name) or real(*rest))
    text = module.text_name(*module.open_data(plan.on(plan.kinds[0], [tmp_path / "more"]).data_config(), 0))
    line = {"kind": "pixels", "configuration": "learned", "seed": 0, "rule": plan.rule("learned"), "text": text}

    def finish(seconds):
        module.append(tmp_path / "out/runs.jsonl", json.dumps(line) + "\n")
        held.close()

    monkeypatch.setattr("pico.lab.compare.time.sleep", finish)
    held.enter_context(lock(tmp_path / "work/busy/pixels-learned-0"))
    failed, ended, said = go(plan, tmp_path)
    assert (failed, ended, calls) == ({}, "finished", ["every-4th"])
    assert sum("another process" in each for each in said) == 1


def made_up(plan, kind, name, seed, first, second):
    return (kind, name, seed), {
        "kind": kind, "configuration": name, "seed": seed, "bits_per_byte": (first + second) / 2,
        "routed_fraction": 0.2,
        "block_bits": [first * 100] * 3 + [second * 100] * 3, "block_bytes": [100] * 6,
        "routing": {"units": {}, "enrichment": {}, "gaps": {}},
    }  # fmt: skip


def test_the_rule_is_chosen_on_one_half_and_the_difference_is_of_the_other(tmp_path, values):
    rules = [{"name": name, "model": SMALL | {"router": router}} for name, router in (("a", "stride"), ("b", "random"))]
    plan = read(tmp_path, values, configurations=[values["configurations"][0], *rules])
    lines = dict(made_up(plan, "cats", "learned", seed, 2.0, 2.0 + seed / 100) for seed in (0, 1))
    lines |= dict(made_up(plan, "cats", "a", seed, 1.5, 2.5) for seed in (0, 1))  # best on the first half alone
    lines |= dict(made_up(plan, "cats", "b", seed, 1.6, 1.0) for seed in (0, 1))
    cats, pixels = judged(plan, lines)["kinds"]
    assert cats["rule"] == "a" and cats["difference"]["mean"] == pytest.approx(-0.495)
    assert cats["seeds"] == pytest.approx([-0.5, -0.49]) and cats["difference"]["n"] == 2
    assert cats["difference"]["p_holm"] == cats["difference"]["p"] and pixels["difference"] is None
    told = atlas_verdict(judged(plan, lines))
    assert (
        "on 1 of 1 kinds, and ahead by 0.02 or more on 1." in told
        and "surely better on 1 and surely worse on 0" in told
    )
    assert "| Cats & mats | a | -0.4950 |" in atlas_markdown(judged(plan, lines))


def test_halves_are_equal_in_bytes():
    line = {"block_bits": [1.0, 2, 3, 4], "block_bytes": [300, 100, 100, 100]}
    assert half(line, 0)["units"][1].tolist() == [300] and half(line, 1)["units"][0].tolist() == [2, 3, 4]


def test_no_block_is_in_both_halves(tmp_path, values):
    line = {"block_bits": [9.0, 1], "block_bytes": [500, 10]}
    assert half(line, 0)["units"][1].tolist() == [500] and half(line, 1)["units"][1].tolist() == [10]
    plan = read(tmp_path, values)
    lines = dict(made_up(plan, "cats", name, 0, 2.0, 2.0) for name in ("learned", "every-4th"))
    assert judged(plan, lines)["kinds"][0]["difference"]["mean"] == 0
    for line in lines.values():
        line |= {"block_bits": [200.0], "block_bytes": [100]}
    assert all(each["difference"] is None for each in judged(plan, lines)["kinds"])


def test_a_router_that_learns_is_no_fixed_rule(tmp_path, values):
    other = {"name": "b", "model": SMALL | {"router": "threshold"}}
    plan = read(tmp_path, values, configurations=[*values["configurations"], other])
    lines = dict(
        made_up(plan, "cats", *of) for of in (("learned", 0, 2.0, 2.0), ("every-4th", 0, 3, 3), ("b", 0, 1, 1))
    )
    assert judged(plan, lines)["kinds"][0]["rule"] == "every-4th"


def test_every_number_of_the_page_is_in_the_table_and_no_byte_is_markup(tmp_path, values):
    kinds = [values["kinds"][0] | {"title": "Cats | <mats>", "units": []}]
    plan, data = read(tmp_path, values, kinds=kinds), b"/*light*/ <!--cards--> <script>\x00\x1b|"
    lines = dict(made_up(plan, "cats", name, 0, 2.0, 2.0) for name in ("learned", "every-4th"))
    lines["cats", "learned", 0]["routing"] = {
        "units": {},
        "enrichment": {"next_byte": {"ratio": 1.87, "chance": [0.9, 1.1]}},
        "gaps": {"mean": 4.5, "cv": 0.61, "chance_cv": 0.86},
        "sample": {"bytes": (data + "é".encode()[:1]).hex(), "routed": "0" * (len(data) + 1)},
        "most": [[b"<b>&".hex(), 9, 1.0]],
        "least": [[data[-4:].hex(), 9, 0.0]],
    }
    write_atlas(found := judged(plan, lines), tmp_path)
    page, table = (tmp_path / "atlas.html").read_text(), atlas_markdown(found)
    assert (
        "/*light*/ &lt;!--cards--&gt; &lt;script&gt;␀␛|<div" in page
        and "<th>units" not in page
        and "&lt;b&gt;&amp;" in page
    )
    for name in "learned", "every-4th":
        assert f"<th>{name}<td>2.0000<td>20.0%" in page
    assert table.count(" 2.0000 at 20.0% |") == 2 and "Cats \\| <mats>" in table
    for number in "1.87 (0.90 to 1.10)", "4.5, 0.61 (0.86)":
        assert number in page and number in table


def trace(data: bytes, routed: str, bits) -> Trace:
    n = len(data) + 1
    flags = np.array([False] + [flag == "1" for flag in routed])
    each = np.ones(n, int), np.array(bits, float), np.zeros(n), flags, np.zeros(n, bool)
    return Trace(data, np.arange(n), *each, *np.ones((3, 1)))


def test_what_a_router_looks_for():
    data = b"ab cd " * 50
    seen = [
        trace(data, "010010" * 50, [4, 1, 1, 4, 1, 1] * 50 + [0])
    ]  # last letters are routed, first letters are hard
    units = unit_agreement(seen, ["words"])["words"]
    assert units["share"] == pytest.approx(1 / 3) and units["f1"] == 0 and units["rate"] == 0
    assert units["chance"] == pytest.approx(1 / 3)
    found = enrichment(seen)
    assert found["next_byte"]["ratio"] == pytest.approx(0.5, rel=0.02) == found["own_byte"]["ratio"]
    low, high = found["next_byte"]["chance"]
    assert low <= 0.51 and high >= 1.9  # a shift by one byte would find the first letters
    after = unit_agreement([trace(data, "001001" * 50, [1] * 301)], ["words"])["words"]
    assert after["before"] > 0.98 and after["f1"] == 0
    codes = contexts(seen)
    assert {bytes.fromhex(code)[-1:] for code, _, rate in codes["most"] if rate == 1} == {b"b", b"d"}
    assert {rate for _, _, rate in codes["least"]} == {0.0, 1.0} and codes["least"][0][2] == 0
    assert sample(seen) == {"bytes": data[100:200].hex(), "routed": ("010010" * 50)[100:200]}


def test_mistakes_are_one_line(tmp_path, values):
    plan = read(tmp_path, values)
    with pytest.raises(PicoError, match=r"--only: no kind 'cat': did you mean cats\? valid: cats, pixels"):
        plan.runs("cat")
    with pytest.raises(PicoError, match=r"no 'pixels' in .*data: give the folder that holds it with --data, or"):
        run_atlas(plan, tmp_path, [tmp_path / "data"], plan.runs(), "cpu", True, lambda _: None)
    with pytest.raises(PicoError, match=r"no 'pixels' in .*data: give the folder"):
        estimate_atlas(plan, tmp_path, [tmp_path / "data"], plan.runs(), "cpu", lambda _: None)
    for key, some, problem in (
        ("kinds", [values["kinds"][0]] * 2, "kinds: 'cats' stands there twice"),
        ("kinds", [values["kinds"][0] | {"folder": "../cats"}], "kinds.0.folder .*expected a folder name"),
        ("configurations", values["configurations"][1:], "the first, 'every-4th', .* expected a router that learns"),
        ("configurations", values["configurations"][2:], "the first, 'tokens', .* expected a router that learns"),
        ("configurations", [values["configurations"][0] | {"name": "compressors"}], "expected another name"),
        ("seeds", 5, "seeds: each configuration says how many"),
    ):
        with pytest.raises(PicoError, match=problem):
            read(tmp_path, values, **{key: some})
    lines = [dict(kind="cats", configuration=c, rule=plan.rule(c), seed=0, text=c) for c in ("learned", "every-4th")]
    (tmp_path / "lines").write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(PicoError, match="lines has scores on two texts of cats: remove the lines of one"):
        read_lines(plan, tmp_path / "lines")
    kinds = [values["kinds"][0] | {"units": ["word"]}]
    with pytest.raises(PicoError, match=r"atlas.json: Atlas: kinds.0.units .*no unit 'word': did you mean words\?"):
        read(tmp_path, values, kinds=kinds)
    (tmp_path / "more/pixels/valid.bin").write_bytes(b"cut")
    failed, ended, _ = go(plan, tmp_path, plan.runs("pixels"))
    short = read(tmp_path, values, validation_bytes=200)
    assert "200 bytes to score, expected 256 or more" in go(short, tmp_path, short.runs("cats"))[0]["cats/learned/0"]
    assert ended == "finished" and "lengths add up to 1,024 bytes, valid.bin has 3" in failed["pixels/learned/0"]


def test_the_time_is_that_of_what_is_left(tmp_path, values, monkeypatch):
    from pico.lab import estimate
    from pico.lab.estimate import Cost

    monkeypatch.setattr(estimate, "measure", lambda *_: Cost(20.0, 100, 1e6, 0.0))
    plan, folders = read(tmp_path, values), [tmp_path / "data", tmp_path / "more"]
    text, ended = estimate_atlas(plan, tmp_path, folders, plan.runs(), "cpu", lambda _: None, tmp_path / "work")
    assert ended == "finished" and "| learned | cats | 1.0 | 2 |" in text and "| tokens | cats | 1.0 | 1 |" in text
    assert "In all: 5 runs, 0.1 hours of one process here (cpu)" in text


def test_the_shipped_atlas_has_a_prediction_for_each_kind():
    plan = read_atlas(SHIPPED / "atlas.json")
    assert len(plan.kinds) == 21 and len(plan.runs()) == 21 * 15 + 2 * sum(kind.text for kind in plan.kinds)
    rows = re.findall(r"^\| (.*?) \| `(.*?)` \| (.*?) \| (.+) \|$", (SHIPPED / "predictions.md").read_text(), re.M)
    assert {(title, folder, float(number)) for title, folder, number, _ in rows} == {
        (kind.title, kind.folder, kind.predicted) for kind in plan.kinds
    }
