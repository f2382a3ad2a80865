"""The folder of a model: model.json, and its runs with their names, settings and lock.

    models/my-model/model.json                 its shape, Pico's or a GPT's
    models/my-model/recipe.json                settings that `train` takes where flags say nothing, if it has some
    models/my-model/my-run/train.json          how the run was started
    models/my-model/my-run/00001000/           a checkpoint, see pico/runs/checkpoint.py

from pico.runs.folder import read_config, runs
read_config("models/my-model"), runs("models/my-model")
"""

import errno
import os
import re
import stat
import subprocess
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pico.base.config import TrainConfig
from pico.base.errors import PicoError
from pico.base.files import NO_LINKS, entries, hold, read_json, remove, write_json, write_whole, writing
from pico.base.hints import command
from pico.base.shapes import GPTConfig, Shape, shape
from pico.base.symbols import BYTES, Alphabet

if TYPE_CHECKING:
    from pico.data.bpe import BPE

HELD = {errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK}  # what hold says of another's lock
WRITTEN = ("train.json", "metrics.jsonl", "samples.txt", "loss.png", ".lock")  # by a training, besides checkpoints
TOKENIZER, RECIPE = "tokenizer.json", "recipe.json"
TAKEN = ("model.json", TOKENIZER, RECIPE, "readme.md")
DEVICES = {"CON", "PRN", "AUX", "NUL", *(f"{port}{i}" for port in ("COM", "LPT") for i in range(10))}


# --- the model --------------------------------------------------------------------------------------------------------


def create(path: str | Path, config: Shape, tokenizer: Path | None = None, recipe: dict | None = None) -> Path:
    """Writes path/model.json, and what goes with it: recipe.json, settings of training, and tokenizer.json, a copy of
    `tokenizer`, whose checksum the config has.

    Raises PicoError where there is a model already, or nothing can be written: no folder is left half-made.
    """
    path, file, copy = Path(path), Path(path) / "model.json", None
    if tokenizer:
        _checked(tokenizer, check_tokens(config))
        copy = path / TOKENIZER
        if os.path.isfile(copy) and os.access(copy, os.R_OK) and copy.read_bytes() == tokenizer.read_bytes():
            copy = None  # of a creation that was killed, or the very file
    for there in filter(None, (file, copy)):
        if os.path.lexists(there):
            raise PicoError(f"{there} already exists: choose another path, or remove that folder first")
    new = [folder for folder in (path, *path.parents) if not os.path.lexists(folder)]
    try:
        with writing(file):
            path.mkdir(parents=True, exist_ok=True)
        if copy and tokenizer:
            write_whole(copy, tokenizer.read_bytes())
        if recipe:
            write_json(path / RECIPE, recipe)
        write_json(file, config.model_dump())
    except BaseException:
        for made in (copy, path / RECIPE if recipe else None):
            if made:
                remove(made)
        for folder in new:
            with suppress(OSError):
                folder.rmdir()
        raise
    return path


def local_folder(path: str | Path) -> Path:
    """The folder of a model: of hf://OWNER/NAME where it was downloaded to. Raises PicoError if it cannot be had."""
    if not str(path).startswith("hf://"):
        return Path(path)
    from pico.data import hub

    return hub.download_model(str(path).removeprefix("hf://"))


def model_name(path: str | Path) -> str:
    """What a model is called: as its folder, or if that is a version in the Hub's cache, as the model on the Hub."""
    path = Path(path).resolve()
    cached = re.fullmatch(r".*/models--.+--(.+)/snapshots/[^/]+", path.as_posix())
    return cached[1] if cached else path.name


def read_config(path: str | Path) -> Shape:
    """The shape of a model folder. Raises PicoError: no such model, broken JSON, unknown keys, bad values."""
    path = Path(path)
    file = path / "model.json"
    try:
        values = read_json(file)
    except FileNotFoundError:
        nearby = sorted(str(p.parent) for p in path.parent.glob("*/model.json"))
        have = f"there are {', '.join(nearby)}" if nearby else f"{path.parent} holds no model"
        raise PicoError(f"no model at {path} ({have}); make one with: {command('init', path)}") from None
    except PicoError as error:
        raise PicoError(f"{error}: mend it, or make a new model") from None
    try:
        return shape(values)
    except PicoError as error:
        raise PicoError(f"{file}: {error}") from None


def read_recipe(path: str | Path) -> dict:
    """The settings of training that go with a model, {} for most. Raises PicoError for what are no settings."""
    file = Path(path) / RECIPE
    try:
        values = read_json(file)
        TrainConfig.build(**values)
    except FileNotFoundError:
        return {}
    except PicoError as error:
        raise PicoError(f"{file}: {error}") from None
    return values


def read_alphabet(path: str | Path, config: Shape) -> Alphabet:
    """What the ids of the model at `path` stand for: bytes, or the tokens of its tokenizer.json.

    Raises PicoError if it has none, or another one than it was made with.
    """
    if not isinstance(config, GPTConfig) or config.unit == "byte":
        return BYTES
    if config.tokenizer_sha256 is None:
        make = command("tokenizer", "stories", TOKENIZER, "--vocab-size", config.vocab_size)
        raise PicoError(f"{path} has no tokenizer: make one with: {make}; then the model anew, with --tokenizer")
    return _checked(Path(path) / TOKENIZER, config)


def _checked(file: Path, config: GPTConfig) -> Alphabet:
    """The tokenizer in a file. Raises PicoError if it is not the config's."""
    from pico.data import bpe

    alphabet = bpe.read_tokenizer(file)
    if alphabet.fingerprint != config.tokenizer_sha256:
        raise PicoError(f"{file} is another one than the model was made with (its checksum differs): bring that back")
    if alphabet.size != config.vocab_size:
        raise PicoError(f"{file} has {alphabet.size} ids, and the model {config.vocab_size}: make the model anew")
    return alphabet


def with_tokenizer(config: Shape, tokenizer: "BPE", asked: bool = False) -> Shape:
    """The shape for a tokenizer: its vocabulary is the tokenizer's. asked: for the size that the config has.

    Raises PicoError for a model of bytes, and where that is another size.
    """
    config = check_tokens(config)
    if asked and config.vocab_size != tokenizer.size:
        raise PicoError(
            f"--vocab-size {config.vocab_size}: the tokenizer {tokenizer.name} has {tokenizer.size} ids, and gives the "
            "model as many; leave the flag out"
        )
    found = {"vocab_size": tokenizer.size, "tokenizer_sha256": tokenizer.fingerprint}
    return shape({**config.model_dump(), **found})


def check_tokens(config: Shape) -> GPTConfig:
    """The shape of a model of tokens. Raises PicoError for one of bytes."""
    if not isinstance(config, GPTConfig) or config.unit == "byte":
        raise PicoError(
            "--tokenizer: this model reads bytes and needs none; a model of tokens is, say, --preset gpt-tiny"
        )
    return config


def differences(before, after, only=None, name: Callable[[str], str] = str) -> str:
    """'dim 128 -> 64; ...': fields in which two configs differ, or ''. name: what a field is called."""
    before, after = before.model_dump(), after.model_dump()
    return "; ".join(
        f"{name(key)} {before.get(key)} -> {after.get(key)}"
        for key in only or {**before, **after}
        if before.get(key) != after.get(key)
    )


# --- its runs ---------------------------------------------------------------------------------------------------------


def name_problem(name: str) -> str | None:
    """Why a run cannot have this name; None if it can. A run is one plain folder, whatever system it is copied to."""
    if not name:
        return "is empty"
    if wrong := [letter for letter in name if letter in '/\\:*?"<>|' or not letter.isprintable()]:
        return f"holds {wrong[0]!r}"
    if len(name) >= 100 or len(name.encode()) > 255:
        return "has 100 characters or more"
    if name[0] in ".- " or name[-1] in ". ":
        return "begins with a dot, a dash or a space, or ends with one"
    if re.fullmatch(r"[0-9]{8}", name):
        return "is eight digits, as a checkpoint's"
    if name.split(".")[0].rstrip().upper() in DEVICES:
        return "is a device on Windows"
    if name.lower() in TAKEN:
        return "is that of a file in the model's folder"
    return None


def check_name(name: str) -> str:
    """The name of a run, if it can be one. Raises PicoError."""
    if problem := name_problem(name):
        shown = name if len(name) < 100 else f"{name[:20]}..."
        raise PicoError(f"run name {shown!r} {problem}: expected one plain folder name, such as my-run")
    return name


def runs(path: str | Path) -> list[str]:
    """Names of the runs of a model: its folders that hold a train.json or a checkpoint and can be read."""

    def is_run(folder: Path) -> bool:
        try:
            return os.path.exists(folder / "train.json") or bool(checkpoints(folder))
        except PicoError:
            return False

    return [p.name for p in entries(path) if not name_problem(p.name) and os.path.isdir(p) and is_run(p)]


def run_folder(path: str | Path, run: str = "") -> Path:
    """The folder of an existing run; without a name, the model's only run. PicoError lists the runs there are."""
    path = Path(path)
    read_config(path)
    have = runs(path)
    if not run and len(have) == 1:
        run = have[0]
    if run and os.path.isdir(path / check_name(run)):
        return path / run
    wrong = f"no run '{run}' in {path}" if run else f"which run of {path}?"
    if have:
        raise PicoError(f"{wrong} (there are: {', '.join(have)})")
    raise PicoError(f"{wrong}: it has no runs; start one with: {command('train', path, run or 'my-run', 'stories')}")


def checkpoints(run: Path) -> list[Path]:
    """What a run has in the place of checkpoints, oldest first, valid or not."""
    return [p for p in entries(run) if re.fullmatch(r"[0-9]{8}", p.name)]


def read_record(run: Path) -> dict:
    """train.json of a run, {} if it has none. Raises PicoError if it cannot be read."""
    file = run / "train.json"
    try:
        record = read_json(file)
        for section in ("train", "data", "model"):
            if not isinstance(record.get(section, {}), dict):
                raise PicoError(f"{file}: {section} is not an object")
    except FileNotFoundError:
        return {}
    except PicoError as error:
        raise PicoError(f"{error}: mend it from another run's") from None
    return record


def is_chat(run: Path) -> bool:
    """Whether a run's training held conversations, by its train.json: then its model can be talked to."""
    return bool(read_record(run).get("chat"))


# --- one training at a time -------------------------------------------------------------------------------------------


class Locked(PicoError):
    """Another live training holds the run folder."""


@contextmanager
def lock(run: Path) -> Generator[str | None]:
    """Keeps a run folder (made if missing) for one live training, which finds it without what others left half-done.

    Yields None, or why nothing is locked, in a line to show. A training that wrote nothing leaves nothing, not even the
    folder. Raises Locked if another training holds it, PicoError if it cannot be written, or leads out of itself.
    """
    descriptor = None
    try:
        for name in WRITTEN:
            if os.path.lexists(run / name) and not stat.S_ISREG(os.lstat(run / name).st_mode):
                raise PicoError(f"{run / name} is a link or no file: a run writes into its own folder alone; remove it")
        descriptor, note = _locked(run)
        for leftover in run.glob(".*.tmp"):
            remove(leftover)
        yield note
    finally:
        if descriptor is not None:
            _unlock(run / ".lock", descriptor)
        with suppress(OSError):
            run.rmdir()  # if it is empty


def _locked(run: Path) -> tuple[int, str | None]:
    """(descriptor of the run's .lock, held; None or why it could not be held)."""
    file, note = run / ".lock", None
    for _ in range(10):
        with writing(run):
            run.mkdir(parents=True, exist_ok=True)  # anew where its holder has removed it, which is through
        with writing(file):
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | NO_LINKS, 0o666)
        try:
            hold(descriptor)
        except OSError as error:
            if error.errno in HELD:
                os.lseek(descriptor, 0, os.SEEK_SET)
                holder = os.read(descriptor, 20).decode("ascii", "replace").strip() or "unknown"
                os.close(descriptor)
                raise Locked(
                    f"{run} is locked by a live training (process {holder}): "
                    "wait for it, stop it, or choose another run name"
                ) from None
            note = f"{run} is not locked ({error.strerror}): start no second training there"
        with suppress(OSError):
            if os.path.samestat(os.fstat(descriptor), os.lstat(file)):
                break
        os.close(descriptor)  # its holder removed it between our open and our lock
    try:
        with writing(file):
            os.ftruncate(descriptor, 0)
            os.lseek(descriptor, 0, os.SEEK_SET)
            os.write(descriptor, str(os.getpid()).encode())
    except PicoError:
        _unlock(file, descriptor)
        raise
    return descriptor, note


def _unlock(file: Path, descriptor: int) -> None:
    removed = False
    with suppress(OSError):
        file.unlink()  # while it is held, so that no other's is removed; Windows refuses, and needs it closed first
        removed = True
    os.close(descriptor)
    if not removed:
        with suppress(OSError):
            file.unlink()


def git_revision() -> str | None:
    """The commit of the code, where it is a git checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None
