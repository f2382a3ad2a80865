"""Damaged checkpoints, in every way that a disk or another program can: named, and passed over."""

import errno
import json
import os
import shutil

import pytest
import torch
from checkpointed import embedding
from helpers import first_fast
from safetensors.torch import load_file, save_file

from pico import PicoError, load
from pico.base import files
from pico.model.pico import Pico
from pico.runs import checkpoint as ck
from pico.runs import verify
from pico.runs.folder import read_config


def reseal(folder, **changes):
    """state.json with other content (None takes a key out) and checksums that are right."""
    record = json.loads((folder / "state.json").read_text())
    record = {key: value for key, value in {**record, **changes}.items() if value is not None}
    files = record.get("files")
    if isinstance(files, dict):
        record["files"] = {name: verify._sha256(folder / name) for name in files if (folder / name).is_file()}
    record["checksum"] = verify._checksum(record)
    (folder / "state.json").write_text(json.dumps(record))


def weights_with(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    reseal(folder)


def replace_by(make):
    def damage(folder):
        (folder / "model.safetensors").unlink()
        make(folder / "model.safetensors")

    return damage


def replace_folder(make):
    def damage(folder):
        shutil.rmtree(folder)
        make(folder)

    return damage


def write(name, content, sealed=False):
    def damage(folder):
        (folder / name).write_bytes(content)
        if sealed:
            reseal(folder)

    return damage


def without_state(folder):
    (folder / "state.json").unlink()


DAMAGES = {
    "state deep": write("state.json", b"[" * 100_000),
    "state deep in the middle": write("state.json", b'{"a":' * 90 + b"1" + b"}" * 90),
    "state a list": write("state.json", b"[]"),
    "state empty": write("state.json", b""),
    "state binary": write("state.json", bytes(range(256))),
    "state missing": without_state,
    "no step": lambda folder: reseal(folder, step=None),
    "step a text": lambda folder: reseal(folder, step="3"),
    "another step": lambda folder: reseal(folder, step=4),
    "no files": lambda folder: reseal(folder, files=None),
    "files a list": lambda folder: reseal(folder, files=["model.safetensors"]),
    "files empty": lambda folder: reseal(folder, files={}),
    "no model": lambda folder: reseal(folder, model=None),
    "model of another kind": lambda folder: reseal(folder, model={"width": 3}),
    "weights empty": write("model.safetensors", b"", sealed=True),
    "weights no safetensors": write("model.safetensors", b"x" * 1000, sealed=True),
    "header cut": write("model.safetensors", (10**6).to_bytes(8, "little") + b'{"a"', sealed=True),
    "header of nonsense": write("model.safetensors", (4).to_bytes(8, "little") + b"null", sealed=True),
    "header deep": write("model.safetensors", (10**5).to_bytes(8, "little") + b"[" * 10**5, sealed=True),
    "integers": lambda folder: weights_with(
        folder, lambda x: x.update({"embedding.weight": x["embedding.weight"].to(torch.int32)})
    ),
    "other shapes": lambda folder: weights_with(
        folder, lambda x: x.update({"embedding.weight": x["embedding.weight"][1:].clone()})
    ),
    "a tensor missing": lambda folder: weights_with(folder, lambda x: x.pop("embedding.weight")),
    "a tensor too many": lambda folder: weights_with(folder, lambda x: x.update({"more": torch.ones(1)})),
    "weights a folder": replace_by(lambda place: place.mkdir()),
    "folder a file": replace_folder(lambda place: place.write_text("")),
}
if os.name != "nt":
    DAMAGES |= {
        "weights a fifo": replace_by(os.mkfifo),
        "weights a loop": replace_by(lambda place: place.symlink_to(place.name)),
        "weights a device": replace_by(lambda place: place.symlink_to("/dev/zero")),
        "state a fifo": lambda folder: (without_state(folder), os.mkfifo(folder / "state.json")),
        "folder a fifo": replace_folder(os.mkfifo),
        "folder a loop": replace_folder(lambda place: place.symlink_to(place.name)),
    }


@pytest.mark.parametrize("damage", first_fast(*DAMAGES.values()), ids=DAMAGES)
def test_whatever_is_wrong_with_the_newest_the_next_is_taken(saved, damage, capfd):
    run, last = saved / "r", saved / "r" / "00000003"
    damage(last)
    for weights_only in (True, False):
        folder, skipped = ck.newest(run, weights_only)
        assert folder == run / "00000002" and len(skipped) == 1 and skipped[0].startswith("00000003: ")
        assert "\n" not in skipped[0] and len(skipped[0]) < 500
    assert torch.equal(load(saved).embedding.weight, embedding(2))
    assert capfd.readouterr().err == f"skipped checkpoint {skipped[0]}\n"
    with pytest.raises(PicoError, match=r"checkpoint .*00000003: ") as error:
        load(saved, checkpoint=3)
    assert "\n" not in str(error.value)
    model, state = Pico(read_config(saved)), {"best": None}
    ck.save(run, 3, model, [], state)  # written again, it is whole
    assert ck.verify_checkpoint(last) is None and not last.is_symlink()


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.ESTALE])
@pytest.mark.parametrize("name", ["state.json", "model.safetensors"])
def test_what_the_system_will_not_read_is_passed_over(saved, monkeypatch, number, name):
    opened = os.open

    def broken(file, *rest, **more):
        if str(file).endswith(f"00000003/{name}"):
            raise OSError(number, os.strerror(number), str(file))
        return opened(file, *rest, **more)

    monkeypatch.setattr(files.os, "open", broken)
    folder, (problem,) = ck.newest(saved / "r")
    assert folder.name == "00000002"
    assert problem.startswith(f"00000003: {name} cannot be read") and os.strerror(number) in problem


def test_half_precision_is_no_damage(saved):
    def halve(tensors):
        for name in list(tensors):
            tensors[name] = tensors[name].bfloat16()

    weights_with(saved / "r" / "00000003", halve)
    assert ck.verify_checkpoint(saved / "r" / "00000003") is None


def test_training_state_that_does_not_fit_is_one_line(saved):
    folder = saved / "r" / "00000003"
    reseal(folder, optimizer={"momentum": {"$tensor": "nowhere"}})
    with pytest.raises(PicoError, match="does not describe what optimizer"):
        ck.load_training(folder)


def test_running_needs_neither_settings_nor_metrics(saved):
    for name in ("train.json", "metrics.jsonl"):
        (saved / "r" / name).write_bytes(b"\xff[" * 1000)
    assert torch.equal(load(saved, "r").embedding.weight, embedding(3))
