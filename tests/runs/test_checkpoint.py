"""Run folders: whole or not at all, verified, never executable, and errors that say what there is instead."""

import errno
import json
import shutil
import subprocess
import sys

import pytest
import torch
from checkpointed import SMALL, embedding, flip
from helpers import first_fast
from hypothesis import given, settings
from hypothesis import strategies as st

from pico import PicoError, load, preset
from pico.base import files
from pico.model.pico import Pico
from pico.runs import checkpoint as ck
from pico.runs import verify
from pico.runs.export import export_run
from pico.runs.folder import checkpoints, create, read_config
from pico.train.resume import take_base

# --- saving and loading -----------------------------------------------------------------------------------------------


def test_load_finds_newest_best_and_numbered(saved):
    assert torch.equal(load(saved, "r").embedding.weight, embedding(3))
    assert torch.equal(load(saved, "r", checkpoint="best").embedding.weight, embedding(2))
    assert torch.equal(load(saved, "r", checkpoint=1).embedding.weight, embedding(1))
    assert torch.equal(load(saved).embedding.weight, embedding(3))  # the only run
    model = load(saved, "r", dtype=torch.bfloat16)
    assert not model.training and model.dtype == torch.bfloat16 and model.embedding.weight.dtype == torch.float32


def test_load_leaves_the_random_state_alone(saved):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    load(saved, "r")
    assert torch.equal(before, torch.get_rng_state())


def test_weights_and_state_round_trip(saved):
    optimizer, state = ck.load_training(saved / "r" / "00000002")
    assert torch.equal(optimizer["momentum"], torch.ones(2))
    assert (state["step"], state["seconds"], state["best"]) == (2, 0.1, {"step": 2})


def test_a_checkpoint_holds_no_pickle(saved):
    files = sorted(p.name for p in (saved / "r" / "00000003").iterdir())
    assert files == ["model.safetensors", "optimizer.safetensors", "state.json"]
    assert len({(saved / "r" / "00000003" / name).stat().st_mode for name in files}) == 1  # as the umask says


def damage_truncate(folder, name):
    (folder / name).write_bytes((folder / name).read_bytes()[:-5])


def damage_flip(folder, name):
    flip(folder / name, -9)


def damage_remove(folder, name):
    (folder / name).unlink()


@pytest.mark.parametrize("damage", [damage_truncate, damage_flip, damage_remove])
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_named_and_skipped(saved, damage, name):
    assert ck.newest(saved / "r") == (saved / "r" / "00000003", [])
    damage(saved / "r" / "00000003", name)
    folder, skipped = ck.newest(saved / "r")
    assert folder == saved / "r" / "00000002"
    assert len(skipped) == 1 and skipped[0].startswith(f"00000003: {name}")
    with pytest.raises(PicoError, match=f"00000003: {name}"):
        ck.find_checkpoint(saved / "r", 3, weights_only=False)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return ck.save(folder, 7, Pico(preset("tiny", **SMALL)), [], {"best": None, "seconds": 1.5})


@given(position=st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_any_flipped_bit_of_state_json_is_noticed(whole, position):
    before = (whole / "state.json").read_bytes()
    assert ck.verify_checkpoint(whole) is None
    try:
        flip(whole / "state.json", position % len(before))
        try:
            same = json.loads((whole / "state.json").read_bytes()) == json.loads(before)  # only white space changed
        except ValueError:
            same = False
        assert same or ck.verify_checkpoint(whole) is not None
    finally:
        (whole / "state.json").write_bytes(before)


def test_load_says_what_it_skips_in_a_line(saved, capfd):
    flip(saved / "r" / "00000003" / "model.safetensors")
    assert torch.equal(load(saved, "r").embedding.weight, embedding(2))
    said = capfd.readouterr().err
    assert said == "skipped checkpoint 00000003: model.safetensors does not match its checksum\n"


def test_running_needs_no_optimizer_state(saved):
    for folder in checkpoints(saved / "r"):
        (folder / "optimizer.safetensors").unlink()
    assert torch.equal(load(saved, "r").embedding.weight, embedding(3))
    assert ck.newest(saved / "r")[0] is None  # but resuming does


def test_a_half_written_checkpoint_does_not_count(saved):
    shutil.copytree(saved / "r" / "00000003", saved / "r" / ".00000004.tmp")
    assert ck.newest(saved / "r")[0].name == "00000003"
    ck.prune(saved / "r", keep_last=3)
    assert not (saved / "r" / ".00000004.tmp").exists()


def test_prune_keeps_the_newest_and_the_best(saved):
    ck.prune(saved / "r", keep_last=1, best=1)
    assert [p.name for p in checkpoints(saved / "r")] == ["00000001", "00000003"]


@pytest.mark.parametrize("place", ["save_file", "sync", "write_state"])
def test_disk_full_keeps_the_previous_checkpoint(saved, monkeypatch, place):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ck, place, full)
    with pytest.raises(PicoError, match=r"the disk is full; .*00000003 stays usable"):
        ck.save(saved / "r", 4, Pico(read_config(saved)), [], {"best": None})
    monkeypatch.undo()
    assert sorted(p.name for p in (saved / "r").iterdir()) == ["00000001", "00000002", "00000003"]
    assert ck.newest(saved / "r") == (saved / "r" / "00000003", [])


@pytest.mark.slow
def test_a_write_that_really_fails_is_one_line(saved):
    """A file size limit stands in for the full disk, in a process of its own."""
    code = f"""
import resource, signal
from pico import PicoError; from pico.runs import checkpoint
from pico.runs.folder import read_config
from pico.model.pico import Pico
from pathlib import Path
model = Pico(read_config({str(saved)!r}))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
try:
    checkpoint.save(Path({str(saved)!r}) / "r", 4, model, [], {{"best": None}})
except PicoError as error:
    assert "00000003 stays usable" in str(error) and "\\n" not in str(error), str(error)
    print("refused")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "refused\n", done.stderr
    assert ck.newest(saved / "r") == (saved / "r" / "00000003", [])
    assert not list((saved / "r").glob(".*"))


def test_two_processes_may_write_one_file(tmp_path):
    """Two comparisons that share a folder: each write is whole, and neither takes the other's half-written file."""
    code = f"""
from pathlib import Path
from pico.base.files import write_json
for number in range(200):
    write_json(Path({str(tmp_path)!r}) / "model.json", [number] * 99)
"""
    writers = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) for _ in range(2)]
    assert [writer.communicate()[1] for writer in writers] == ["", ""]
    assert json.loads((tmp_path / "model.json").read_text()) == [199] * 99
    assert [file.name for file in tmp_path.iterdir()] == ["model.json"]


# --- bad input --------------------------------------------------------------------------------------------------------


def test_create_refuses_to_overwrite(saved):
    before = (saved / "model.json").read_text()
    with pytest.raises(PicoError, match="already exists"):
        create(saved, preset("xs"))
    assert (saved / "model.json").read_text() == before
    (saved / "file").write_text("")
    with pytest.raises(PicoError, match="cannot write"):
        create(saved / "file" / "m", preset("xs"))


@pytest.mark.parametrize(
    "text, expected",
    [
        ("{", "cannot be read as JSON"),
        ("[1]", "not a JSON object"),
        ('{"dim": 16, "depth": 3}', "unknown key 'depth': valid: kind, dim, "),
        ('{"dims": 16}', "unknown key 'dims': did you mean dim\\? valid: kind, dim, "),
        ('{"cls": 16}', "unknown key 'cls'"),
        ('{"dim": -4, "att_q_heads": 0}', "dim = -4.*att_q_heads = 0"),
        ("\xff", "cannot be read as JSON"),
    ],
)
def test_a_bad_model_json_is_one_line(saved, text, expected):
    (saved / "model.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(PicoError, match=expected) as error:
        load(saved, "r")
    assert "\n" not in str(error.value) and "model.json" in str(error.value)


def test_missing_model_and_run_say_what_there_is(saved):
    with pytest.raises(PicoError, match=r"no model at .*there are .*m.*picolm.py init"):
        load(saved.parent / "other", "r")
    with pytest.raises(PicoError, match=r"no run 'x' in .*there are: r"):
        load(saved, "x")
    with pytest.raises(PicoError, match=r"has no checkpoint of step 9; it has: 1, 2, 3"):
        load(saved, "r", checkpoint=9)
    for wrong in (-2, "newest", "1.5"):
        with pytest.raises(PicoError, match="expected -1"):
            load(saved, "r", checkpoint=wrong)
    shutil.copytree(saved / "r", saved / "s")
    with pytest.raises(PicoError, match=r"which run .*there are: r, s"):
        load(saved)
    empty = create(saved.parent / "empty", preset("xs"))
    with pytest.raises(PicoError, match=r"it has no runs; start one with: python picolm.py train"):
        load(empty, "r")


def test_no_valid_checkpoint_names_each(saved):
    for folder in checkpoints(saved / "r"):
        flip(folder / "model.safetensors")
    with pytest.raises(PicoError, match=r"no valid checkpoint.*00000003.*00000002.*00000001"):
        load(saved, "r")
    (saved / "s").mkdir()
    with pytest.raises(PicoError, match=r"no valid checkpoint.*it holds none"):
        load(saved, "s")


def test_a_checkpoint_of_another_architecture_is_refused(saved):
    config = json.loads((saved / "model.json").read_text())
    (saved / "model.json").write_text(json.dumps({**config, "dim": 32}))
    with pytest.raises(PicoError, match=r"another architecture.*dim 32 -> 16"):
        load(saved, "r")
    (saved / "model.json").write_text(json.dumps({**config, "router": "stride"}))
    with pytest.raises(PicoError, match=r"another architecture.*router stride -> "):
        load(saved, "r")
    other = Pico(preset("tiny", **{**SMALL, "latent_num_blocks": 2, "next_tokens": 3}))
    with pytest.raises(PicoError, match=r"another architecture: no latent.1.*more"):
        ck.load_weights(other, saved / "r" / "00000003")


# --- what is kept -----------------------------------------------------------------------------------------------------


def names(run):
    return [int(folder.name) for folder in checkpoints(run)]


@pytest.mark.parametrize(
    "damaged, keep_last, best, saved_step, left, told",
    [
        ([], 1, None, 3, [3], []),
        ([], 2, 1, 3, [1, 2, 3], []),
        ([3], 1, None, 2, [2, 3], []),  # saved after 3 was passed over: 3 is no reason to remove 2
        ([3], 1, None, None, [2, 3], []),
        ([3], 2, None, 2, [1, 2, 3], []),
        ([2], 1, None, 3, [3], []),
        ([2], 2, None, 3, [1, 3], [2]),  # not counted; removed, since there is a newer one
        ([2], 2, 2, 3, [1, 2, 3], []),  # unless it is the best
        ([2, 3], 1, None, None, [1, 2, 3], []),
        ([1, 2, 3], 1, None, None, [1, 2, 3], []),
        ([], 1, None, 1, [1, 3], []),  # a newer one that could not be read for a while
    ],
)
def test_valid_checkpoints_are_counted_and_what_was_saved_is_kept(
    saved, damaged, keep_last, best, saved_step, left, told
):
    run = saved / "r"
    for step in damaged:
        flip(run / f"{step:08d}" / "model.safetensors")
    problems = ck.prune(run, keep_last, best, saved_step)
    assert names(run) == left
    assert [int(problem[:8]) for problem in problems] == told


def test_damage_between_two_prunes_is_noticed(saved):
    ck.prune(saved / "r", 3, None, 3)
    (saved / "r" / "00000002" / "state.json").write_text("{}")
    assert ck.prune(saved / "r", 2, None, 3) == ["00000002: state.json does not match its checksum"]
    assert names(saved / "r") == [1, 3]


# --- beside a training that saves and prunes --------------------------------------------------------------------------


@pytest.fixture
def meanwhile(saved, monkeypatch):
    """A training that saves the next checkpoint and removes all others whenever a function is called, `times` often."""

    def arrange(place, name, times=1):
        original, step = getattr(place, name), [3]

        def hooked(*args, **more):
            if step[0] < 3 + times:
                step[0] += 1
                torch.manual_seed(step[0])
                model = Pico(read_config(saved))
                with monkeypatch.context() as patch:
                    patch.setattr(place, name, original)
                    ck.save(saved / "r", step[0], model, [], {"best": {"step": step[0]}, "seconds": 0.1})
                    ck.prune(saved / "r", 1, step[0], step[0])
            return original(*args, **more)

        monkeypatch.setattr(place, name, hooked)

    return arrange


@pytest.mark.parametrize("place", first_fast("read_tensors", "saved_config", "tensors_in", "_sha256", "read_json"))
@pytest.mark.parametrize("which", [-1, "best"])
@pytest.mark.parametrize("times", [1, 3])
def test_a_checkpoint_that_vanishes_is_looked_for_again(saved, meanwhile, place, which, times, capfd):
    meanwhile(verify if hasattr(verify, place) else ck, place, times)
    loaded = load(saved, "r", which).embedding.weight
    assert any(torch.equal(loaded, embedding(step)) for step in range(4, 4 + times))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("times", [1, 3])
def test_a_file_that_vanishes_between_its_two_openings_is_looked_for_again(saved, meanwhile, times, capfd):
    """safetensors reads its header, then has torch open it by name and map it: a RuntimeError if it is gone."""
    meanwhile(torch.UntypedStorage, "from_file", times)
    assert any(torch.equal(load(saved, "r").embedding.weight, embedding(step)) for step in range(4, 4 + times))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("place", ["saved_config", "load_weights", "read_tensors", "read_json"])
def test_a_step_asked_for_by_number_is_not_replaced(saved, meanwhile, place):
    meanwhile(verify if hasattr(verify, place) else ck, place)
    with pytest.raises(PicoError, match=r"r has no checkpoint of step 2; it has: 4$"):
        load(saved, "r", 2)


def test_export_and_base_weights_look_again(saved, meanwhile, tmp_path):
    meanwhile(ck, "read_tensors", 2)
    made = export_run(saved, "r", tmp_path / "out", -1)
    assert made.name in ("00000004", "00000005")
    base = take_base(Pico(read_config(saved)), saved, "r")
    assert base["step"] == names(saved / "r")[-1] and len(base["sha256"]) == 64


def test_a_removal_is_seen_whole_or_not_at_all(saved, monkeypatch):
    seen, original = [], shutil.rmtree

    def slowly(path, *rest, **more):
        seen.append(ck.newest(saved / "r"))
        original(path, *rest, **more)

    monkeypatch.setattr(files.shutil, "rmtree", slowly)
    ck.prune(saved / "r", 1, None, 3)
    assert seen and all(found == (saved / "r" / "00000003", []) for found in seen)
    assert not list((saved / "r").glob(".*"))
