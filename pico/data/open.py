"""Where training text comes from, and how it is packed into batches.

train, validation = open_data(DataConfig(dataset="stories"), seed=0)
for inputs, targets in Batches(train, context_len=512, next_tokens=8, batch_size=8, seed=0):  # (8, 512), (8, 519)
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pico.base.config import DataConfig
from pico.base.errors import PicoError
from pico.data import hub
from pico.data.bins import index_of, is_index, pair_up
from pico.data.corpus import BUILT_IN, Endless, held_back
from pico.data.documents import Documents
from pico.data.formats import DATA, TABLES, suffix
from pico.data.holdout import HELD_OUT, STREAM_ROWS, held_rows, hold_out
from pico.data.hub import Stream
from pico.data.mixture import Mixture, is_mixture, open_mixture
from pico.data.packing import Batches
from pico.data.pipes import as_file
from pico.data.reading import Reading, amount, file_names
from pico.data.sources import Found, find_files, read_files, split_name

if TYPE_CHECKING:
    from datasets import IterableDataset

__all__ = ["Batches", "hold_out", "open_data", "open_evaluation"]

OWN = [
    {"model.json"},
    {"train.json", "metrics.jsonl"},
    {"state.json", "model.safetensors"},
]  # models, runs, checkpoints
STREAM_BYTES = 32 << 20  # of a stream, kept for validation


@dataclass
class Part:
    """A split that can be read. `read` fills a Reading; of a stream it may be told which rows, and how many bytes."""

    read: Callable[..., Documents]
    stream: "IterableDataset | None" = None  # where data is streamed
    files: list[Path] = field(default_factory=list)


def open_data(
    config: DataConfig, seed: int, reading: Reading | None = None
) -> tuple[Documents | Stream | Mixture, Documents]:
    """(training, validation) documents, which never overlap; see DataConfig for what chooses them.

    reading: is told what was read. Raises PicoError if the dataset is missing, empty, unreadable, or has no such
    column, split or file.
    """
    reading = Reading() if reading is None else reading
    if config.dataset in BUILT_IN:
        _warn_of_flags(config, reading)
        train, validation = Endless(config, seed), held_back(config)
        reading.note("training", f"{BUILT_IN[config.dataset]} without end, new ones every epoch of {len(train):,}")
        reading.note("validation", amount(validation), "never trained on")
        return train, validation
    if is_mixture(config.dataset):
        if config.model_dump(exclude_defaults=True, exclude={"dataset"}):
            reading.warn(f"{config.dataset} says how its data sets are read: of the flags of data, none counts")
        return open_mixture(config.dataset, seed, reading, open_data)
    splits = _splits(config, reading)
    train, validation = _choose(config, splits)
    if train is None or train == validation:
        raise PicoError(
            f"'{config.dataset}' leaves nothing to train on besides its validation part: give a different "
            "--dataset-train-file or --dataset-train-split"
        )
    _leave_out(splits, (train, validation), reading)
    if splits[train].stream is not None:
        return _open_stream(config, splits, train, validation, reading)
    documents, files = splits[train].read(reading), splits[train].files
    if validation:
        held, how, others = splits[validation].read(reading), _why(config), splits[validation].files
    else:
        (documents, held), how, others = hold_out(documents, config.validation_size), _held_out(documents, config), []
    reading.note("training", amount(documents), file_names(files) if files else f"split '{train}'")
    reading.note("validation", amount(held), file_names(others) if others else "", how)
    return documents, held


def open_evaluation(config: DataConfig, seed: int = 0, reading: Reading | None = None) -> Documents:
    """What `eval` scores: the validation part where the flags or the dataset define one, else all of it."""
    reading = Reading() if reading is None else reading
    documents, *how = _open_evaluation(config, seed, reading)
    reading.note("text", amount(documents), *how)
    return documents


def _open_evaluation(config: DataConfig, seed: int, reading: Reading) -> tuple:
    if is_mixture(config.dataset):
        return open_data(config, seed, reading)[1], "held out of all its data sets, in their shares"
    if config.dataset in BUILT_IN:
        _warn_of_flags(config, reading)
        return held_back(config), f"built-in {BUILT_IN[config.dataset]} that are never trained on"
    splits = _splits(config, reading)
    train, validation = _choose(config, splits)
    name = validation or train
    assert name is not None, "_choose found neither part"
    part = splits[name]
    _leave_out(splits, (name,), reading)
    where = file_names(part.files) if part.files else f"split '{name}'"
    held = not validation and config.validation_size
    if part.stream is not None:
        selects = held_rows(config.validation_size) if held else None
        return part.read(reading, selects=selects), where, "streamed"
    documents = part.read(reading)
    if held:
        return hold_out(documents, config.validation_size)[1], where, _held_out(documents, config)
    return documents, where, _why(config) if validation else "all of it"


def _open_stream(config: DataConfig, splits: dict[str, Part], train: str, validation: str | None, reading: Reading):
    stream = splits[train].stream
    if validation:
        how = f"split '{validation}'"
        documents = splits[validation].read(reading, size=STREAM_BYTES)
        training = Stream(stream, train, config)
    else:
        how, held = "of the stream's first rows, not trained on", held_rows(config.validation_size)
        documents = splits[train].read(reading, selects=held, size=STREAM_BYTES)
        training = Stream(stream, train, config, lambda row: not held(row))
    reading.note("training", f"a stream, split '{train}'", training.rows.said)
    reading.note("validation", amount(documents), how)
    return training, documents


def _warn_of_flags(config: DataConfig, reading: Reading) -> None:
    talk = {"format", "loss_on", "exclude_words"} if config.dataset != "stories" else set()
    if config.model_dump(exclude_defaults=True, exclude={"dataset", "validation_size", *talk}):
        counting = "and --loss-on alone count" if talk else "alone counts"
        reading.warn(
            f"the built-in {BUILT_IN[config.dataset]} are no files: of the flags of data, "
            f"--dataset-validation-size {counting}"
        )


def _leave_out(splits: dict[str, Part], used: tuple, reading: Reading) -> None:
    for name, part in splits.items():
        if name not in used:
            reading.left_out[f"split '{name}'" + (f" {file_names(part.files)}" if part.files else "")] += 1


def _why(config: DataConfig) -> str:
    if config.validation_file:
        return "by --dataset-validation-file"
    return "by --dataset-validation-split" if config.validation_split else "by its name"


def _held_out(documents: Documents, config: DataConfig) -> str:
    part = config.validation_size or HELD_OUT
    if len(documents) == 1:
        return f"the last {100 * part:.3g} % of the one document"
    return "held out of the training documents at random" + (f", {100 * part:.3g} %" if part < 1 else "")


# --- choosing the parts ----------------------------------------------------------------------------------------------


def _splits(config: DataConfig, reading: Reading) -> dict[str, Part]:
    try:
        return _find_splits(config, reading)
    except OSError as error:
        raise PicoError(f"cannot read {error.filename or config.dataset}: {error.strerror or error}") from None


def _find_splits(config: DataConfig, reading: Reading) -> dict[str, Part]:
    # 1. What is it: a dataset of the Hub, here or there, or files? And what it surely is not is refused by name.
    path, raw, bins = Path(config.dataset).expanduser(), config.format == "bytes", config.format == "bin"
    named_files = config.train_file or config.validation_file
    if path.is_dir() and not raw and not bins and not named_files and hub.is_repository(path):
        return _hub_splits(config)
    if path.is_symlink() and not path.exists():
        raise PicoError(f"'{config.dataset}' is a link that leads nowhere: give a file or folder that exists")
    if "://" in config.dataset:
        raise PicoError(
            f"'{config.dataset}' is an address, expected a path or the name of a dataset on the Hub: download it "
            "first, and give the file"
        )
    if not raw and any(all((path / name).is_file() for name in names) for names in OWN):
        raise PicoError(
            f"'{config.dataset}' is the folder of a model or a run, expected text to read: give the data behind them, "
            "as in `train MODEL RUN DATASET`"
        )
    if not path.exists():
        name = config.dataset.partition(":")[0]
        if suffix(path) in DATA or not (Path(name).is_dir() or hub.is_name(config.dataset)):
            raise PicoError(
                f"no file or folder '{config.dataset}': give a path that exists, a Hub dataset or 'stories'"
            )
        if bins and not named_files:
            raise PicoError(
                "--dataset-format bin of a dataset on the Hub: name its files with --dataset-train-file and "
                "--dataset-validation-file"
            )
        if config.streaming or not named_files or Path(name).is_dir():
            return _hub_splits(config)
        path = hub.download(config)

    # 2. Which files are there, by the splits that their names tell.
    if path.is_dir():
        found = find_files(path, raw, bins)
    else:
        if not raw:
            pair_up([path], bins)
            if is_index(path):
                raise PicoError(f"{path} says where documents end in {path.stem}.bin: give that one")
        found, path = Found({"train": [as_file(path)]}, raw), path.parent
    if config.format == "chat":
        found.splits = {split: _tables(files, reading) for split, files in found.splits.items()}
        found.raw = False

    # 3. What was asked for by name comes first; no file belongs to two parts, and what is left out is said.
    splits = {split: (files, found.raw) for split, files in found.splits.items()}
    for split, pattern in ("train", config.train_file), ("validation", config.validation_file):
        if pattern:
            splits[split] = _named(path, pattern), raw
    first, *others = ("validation", "train") if config.validation_file else ("train", "validation", "test")
    for split in others:
        files, as_text = splits.get(split, ([], raw))
        splits[split] = [file for file in files if file not in splits.get(first, [[]])[0]], as_text
    chosen = {file for files, _ in splits.values() for file in files}
    passed = [file for files in found.splits.values() for file in files if file not in chosen]
    reading.left_out.update(found.left_out)
    reading.left_out["files not named"] += len(passed)
    splits = {split: part for split, part in splits.items() if part[0]}
    if not splits:
        passed = f" (left out: {reading.passed_over()})" if reading.passed_over() else ""
        if config.format == "chat":
            raise PicoError(
                f"no tables in '{config.dataset}'{passed}: expected rows of conversations, {', '.join(sorted(TABLES))}"
            )
        raise PicoError(
            f"no text files in '{config.dataset}'{passed}: give a folder with some, or read all files of this one as "
            "raw bytes with --dataset-format bytes"
        )
    return {
        split: Part(partial(_read_local, files, as_text, config), files=files)
        for split, (files, as_text) in splits.items()
    }


def _tables(files: list[Path], reading: Reading) -> list[Path]:
    """The files that have rows; others are no conversations."""
    tables = [file for file in files if suffix(file) in TABLES]
    reading.left_out["files that are no tables"] += len(files) - len(tables)
    return tables


def _hub_splits(config: DataConfig) -> dict[str, Part]:
    loaded = hub.load_splits(config)
    if config.streaming:
        return {
            split: Part(partial(_read_stream, dataset, split, config), stream=dataset)
            for split, dataset in loaded.items()
        }
    return {split: Part(partial(_read_hub, dataset, config)) for split, dataset in loaded.items()}


def _read_local(files: list[Path], raw: bool, config: DataConfig, reading: Reading) -> Documents:
    log = partial(reading.note, "tables")
    unfit = Counter()
    chats = unfit if config.format == "chat" else None
    documents = read_files(files, config.column_name, raw, config.csv_separator, log, chats)
    tables = not raw and any(suffix(file) in TABLES for file in files)
    empty = "rows without text" if tables else "empty documents" if any(map(index_of, files)) else "empty files"
    _count(documents, config, reading, unfit, empty)
    if not tables and (config.column_name or config.csv_separator):
        flag = "--dataset-column-name" if config.column_name else "--dataset-csv-separator"
        reading.warn(f"{flag} changes nothing {file_names(files)}: no table is among these files")
    if config.streaming:
        reading.warn("--streaming changes nothing: files on this disk are read where they lie")
    return _separated(documents, config, reading, f" ({file_names(files)})")


def _count(documents: Documents, config: DataConfig, reading: Reading, unfit: Counter, empty: str) -> None:
    """Counts what was left out: empty documents; of conversations the rows that are none, `unfit` by what is wrong."""
    if config.format == "chat":
        documents.loss_on = config.loss_on
        empty = "rows that are no conversation"  # collected some time before, if what is wrong is not known
        reading.left_out.update(unfit if unfit.total() == documents.empty else {empty: documents.empty})
    else:
        reading.left_out[empty] += documents.empty


def _read_hub(dataset, config: DataConfig, reading: Reading) -> Documents:
    unfit = Counter()
    documents, said = hub.read_split(dataset, config, unfit)
    reading.note("tables", said)
    _count(documents, config, reading, unfit, "rows without text")
    return _separated(documents, config, reading)


def _separated(documents: Documents, config: DataConfig, reading: Reading, where: str = "") -> Documents:
    """Cut at the --document-separator; conversations are not."""
    if documents.loss_on:
        if config.document_separator:
            reading.warn("--document-separator changes nothing: conversations are cut where a turn begins")
        return _filled(documents, config, reading, where)
    cut = documents.split(config.document_separator)
    if config.document_separator and cut.size == documents.size:
        reading.warn(f"--document-separator {config.document_separator!r} never occurs in {amount(documents)} of text")
    return _filled(cut, config, reading, where)


def _read_stream(
    dataset, split: str, config: DataConfig, reading: Reading, selects: Callable | None = None, size: int | None = None
) -> Documents:
    """The documents of a stream that score: up to `size` bytes, and of its first rows only where some are selected."""
    stream = Stream(dataset, split, config.model_copy(update={"document_separator": None}), selects)
    documents = stream.collect(size=size, rows=STREAM_ROWS if selects else None)
    reading.left_out["rows without text"] += documents.empty
    return _separated(documents, config, reading)


def _filled(documents: Documents, config: DataConfig, reading: Reading, where: str = "") -> Documents:
    if not len(documents):
        passed = f"; left out: {reading.passed_over()}" if reading.passed_over() else ""
        raise PicoError(f"no text in '{config.dataset}'{where}, expected at least one document{passed}")
    return documents


def _named(folder: Path, pattern: str) -> list[Path]:
    """The files a --dataset-*-file flag means: a path in the dataset's folder, any path, or a pattern like *.txt."""
    for path in folder / pattern, Path(pattern).expanduser():
        if path.exists() and not path.is_dir():
            return [as_file(path)]
    found = [] if Path(pattern).is_absolute() else sorted(p for p in folder.glob(pattern) if p.is_file())
    if not found:
        raise PicoError(f"no file '{pattern}' in '{folder}' or here: give a file of the dataset")
    return found


def _choose(config: DataConfig, splits: dict) -> tuple[str | None, str | None]:
    """The names of the training split and of the validation split; None where there is none."""

    def known(wanted: str, flag: str) -> str:
        for name in wanted, split_name(wanted):
            if name in splits:
                return name
        raise PicoError(f"no split '{wanted}' in '{config.dataset}', it has {', '.join(splits)}: choose with {flag}")

    validation = None
    if config.validation_file:
        validation = "validation"
    elif config.validation_split:
        validation = known(config.validation_split, "--dataset-validation-split")
    if config.train_split:
        train = known(config.train_split, "--dataset-train-split")
    else:
        others = [name for name in splits if name != validation]
        train = "train" if "train" in splits else others[0] if len(others) == 1 else None
    if train is None and not validation:
        raise PicoError(f"which split of {', '.join(splits)} is for training? choose with --dataset-train-split")
    if not validation and not config.validation_size:
        fitting = [name for split in ("validation", "test") for name in splits if split_name(name) == split]
        validation = next((name for name in fitting if name != train), None)
    return train, validation
