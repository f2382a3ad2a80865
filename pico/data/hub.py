"""Datasets read through Hugging Face `datasets`: from the Hub, or from a folder laid out like a Hub repository.

Downloaded, they become Documents. Streamed, they are read in order and shuffled within blocks of some thousand
documents; a block's place in the stream is a few numbers, so training resumes exactly without storing a buffer.
"""

import copy
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from pico.base.config import DataConfig
from pico.base.errors import DataError, PicoError
from pico.base.symbols import BYTES
from pico.data.chat import choose_form, form_name, pack_row
from pico.data.documents import Documents, collect
from pico.data.tables import as_bytes, cell, choose_column, infer_columns

BLOCK_DOCUMENTS, BLOCK_BYTES = 4096, 16 << 20  # a block of a stream ends at whichever comes first
TIMEOUT = 5.0  # seconds to wait for the Hub's first answer


def is_repository(folder: Path) -> bool:
    """Whether the folder's README.md starts with metadata that says where the data lies."""
    return bool(re.search(r"^configs:", _metadata(folder / "README.md"), re.MULTILINE))


def _metadata(file: Path) -> str:
    """The YAML of a .yaml file, or between the --- lines that a README starts with; '' where there is none."""
    text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    if file.suffix == ".yaml":
        return text
    front = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
    return front[1] if front else ""


def _stay_inside(folder: Path) -> None:
    """Raises PicoError if the folder's metadata names data that lies elsewhere: whoever wrote it is not the user.

    Links in the folder are followed: the Hub's own cache consists of them.
    """
    for name in "README.md", ".huggingface.yaml":
        try:
            metadata = yaml.safe_load(_metadata(folder / name))
        except yaml.YAMLError:  # `datasets` will say so
            continue
        configs = metadata.get("configs") if isinstance(metadata, dict) else None
        for entry in configs if isinstance(configs, list) else [configs]:
            named = [entry.get(key) for key in ("data_files", "data_dir")] if isinstance(entry, dict) else []
            for path in _strings(named):
                if re.match(r"[/\\~]|[A-Za-z]+:", path) or ".." in re.split(r"[/\\]", path):
                    raise PicoError(
                        f"{name} of {folder} names data outside its folder ('{path}'), which is not followed: remove "
                        "that line, or name the files with --dataset-train-file"
                    )


def _strings(value) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings(inner)


def is_name(dataset: str) -> bool:
    """Whether this may be the name of a dataset on the Hub, OWNER/NAME or NAME, with :CONFIG after it or not."""
    return bool(re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?(:[\w.-]+)?", dataset))


def load_splits(config: DataConfig) -> dict:
    """Split name -> datasets.Dataset, or IterableDataset when streaming.

    Raises PicoError if there is no such dataset, the Hub cannot be reached (and nothing was downloaded before), or
    the dataset cannot be read.
    """
    name, subset = str(Path(config.dataset).expanduser()), None
    if not Path(name).exists():
        name, _, subset = name.partition(":")
    local = Path(name).exists()
    if local:
        _stay_inside(Path(name))
    offline = not local and not _reachable(name)
    files = {"train": config.train_file, "validation": config.validation_file}
    files = {split: file for split, file in files.items() if file}
    try:
        with _quiet(offline) as datasets:
            source, cache = _stamped(Path(name), datasets.config.HF_DATASETS_CACHE) if local else (name, None)
            loaded = datasets.load_dataset(
                source, subset, data_files=files or None, cache_dir=cache, streaming=config.streaming
            )
    except Exception as error:  # `datasets` raises errors of a dozen unrelated classes
        if offline:
            raise PicoError(
                f"cannot reach the Hugging Face Hub for '{name}', and there is no file or folder of that name: "
                "give a local file or folder, or 'stories', the built-in corpus"
            ) from None
        reason = _reason(error)
        hint = f": write {name}:CONFIG" if "onfig name is missing" in reason else ""
        raise PicoError(f"cannot read dataset '{config.dataset}': {reason}{hint}") from None
    return dict(loaded)


def download(config: DataConfig) -> Path:
    """Downloads the files that --dataset-train-file and --dataset-validation-file name; returns their folder."""
    from huggingface_hub import snapshot_download

    patterns = [file for file in (config.train_file, config.validation_file) if file]
    patterns += [file.removesuffix("bin") + "json" for file in patterns if file.endswith(".bin")]  # where documents end
    name = config.dataset.partition(":")[0]
    offline = not _reachable(name)
    try:
        folder = snapshot_download(name, repo_type="dataset", allow_patterns=patterns, local_files_only=offline)
    except Exception as error:
        reason = "the Hugging Face Hub cannot be reached" if offline else _reason(error)
        raise PicoError(
            f"cannot download from '{config.dataset}': {reason}; a local file or folder, or 'stories', needs no network"
        ) from None
    return Path(folder)


def download_tokenizer(name: str) -> Path:
    """The tokenizer.json of a model on the Hub. Raises PicoError if it cannot be had."""
    from huggingface_hub import hf_hub_download

    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", name):
        raise PicoError(f"no tokenizer at '{name}': expected a tokenizer.json, or the name of a model on the Hub")
    offline = not _reachable(name, "model")
    try:
        return Path(hf_hub_download(name, "tokenizer.json", local_files_only=offline))
    except Exception as error:
        reason = "the Hugging Face Hub cannot be reached" if offline else _reason(error)
        raise PicoError(
            f"cannot download the tokenizer of '{name}': {reason}; give a tokenizer.json on this disk, or make one "
            "with the command `tokenizer`"
        ) from None


NAME = r"\w[\w.-]*/\w[\w.-]*"  # of a model on the Hub
OURS = ("model.json", "tokenizer.json", "recipe.json", "*/train.json", "*/metrics.jsonl", "*/????????/*")


def download_model(name: str) -> Path:
    """The folder of a Pico model on the Hub, OWNER/NAME, with its runs. Raises PicoError if it cannot be had."""
    from huggingface_hub import snapshot_download

    if not re.fullmatch(NAME, name):
        raise PicoError(f"no model at hf://{name}: expected hf://OWNER/NAME, a model on the Hugging Face Hub")
    offline = not _reachable(name, "model")
    try:
        folder = Path(snapshot_download(name, allow_patterns=list(OURS), local_files_only=offline))
    except Exception as error:
        reason = "the Hugging Face Hub cannot be reached, and it was never downloaded" if offline else _reason(error)
        raise PicoError(f"cannot download hf://{name}: {reason}; give the folder of a model on this disk") from None
    if not (folder / "model.json").is_file():
        raise PicoError(f"hf://{name} holds no Pico model: expected a model.json, as `export --push` uploads it")
    return folder


def _stamped(folder: Path, cache: str | Path) -> tuple[str, str]:
    """The folder, and a cache of its own for its present content: `datasets` does not notice when files change."""
    stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(folder.rglob("*"))]
    stamp = hashlib.blake2b(repr(stats).encode(), digest_size=8).hexdigest()
    return str(folder.resolve()), str(Path(cache) / f"{folder.resolve().name}-{stamp}")


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _reachable(name: str, kind: str = "dataset") -> bool:
    """Asks the Hub once, with a short timeout. Raises PicoError if it answers that there is no such `kind`."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    try:
        HfApi().repo_info(name, repo_type=kind, timeout=TIMEOUT)
        return True
    except (RepositoryNotFoundError, HFValidationError):
        raise PicoError(
            f"no {kind} '{name}' on the Hugging Face Hub, nor a file or folder of that name: check the spelling "
            "(for a private one, log in with `hf auth login`)"
            + (", or use 'stories', the built-in corpus" if kind == "dataset" else "")
        ) from None
    except Exception:  # no network in any of its forms: what was downloaded before may still do
        return False


@contextmanager
def _quiet(offline: bool):
    """`datasets` without progress bars of its own and, if offline, without retries that hang for half a minute."""
    import datasets.config
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    if offline:
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield datasets
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


def text_column(dataset, config: DataConfig) -> str:
    """The column to read, chosen as in a file: a.b is b in the struct a."""
    kinds = dict(_kinds(dataset.features)) if dataset.features else infer_columns(dataset, config.column_name)
    return choose_column(kinds, config.column_name, f"dataset '{config.dataset}'")


def _kinds(features: dict, above: str = "") -> Iterator[tuple[str, str]]:
    names = {"string": "text", "large_string": "text", "binary": "bytes", "large_binary": "bytes", "null": "nothing"}
    for name, feature in features.items():
        if isinstance(feature, dict):
            yield from _kinds(feature, f"{above}{name}.")
        else:
            kind = getattr(feature, "dtype", type(feature).__name__)
            yield above + name, names.get(kind, kind)


class Rows:
    """How the rows of a dataset become documents: by their text, or as conversations.

    name: the column, or those of a conversation; said: the same in words. unfit: counts rows that are no
    conversation by what is wrong.
    """

    def __init__(self, dataset, config: DataConfig, unfit: Counter):
        if config.format == "chat":
            names = dataset.column_names or list(next(iter(dataset), {}))
            form = choose_form(names, config.column_name, f"dataset '{config.dataset}'")
            self.name, self.said, self.columns = ",".join(form.columns), form_name(form), list(form.columns)
            self.document = lambda row, place: pack_row(row, form, unfit)
        else:
            column = self.name = text_column(dataset, config)
            self.said, struct = f"column '{column}'", column.partition(".")[0]
            self.columns = [column if column in (dataset.column_names or [struct]) else struct]
            self.document = lambda row, place: as_bytes(cell(row, column), column, place)


def read_split(dataset, config: DataConfig, unfit: Counter) -> tuple[Documents, str]:
    """(all documents of a downloaded split, what they were read from). unfit: see Rows."""
    rows = Rows(dataset, config, unfit)
    table = dataset.select_columns(rows.columns).with_format("arrow")
    sources = [(file["filename"], Path(file["filename"]).stat().st_mtime_ns) for file in dataset.cache_files]
    kind = " chat" if config.format == "chat" else ""
    key = f"{sources} {len(dataset)} {rows.name}{kind}" if sources else None
    texts = (rows.document(row, config.dataset) for batch in table.iter(1000) for row in batch.to_pylist())
    return collect(texts, key), rows.said


class Stream:
    """A streamed split, read a block of documents at a time; only rows whose number `selects` accepts.

    place: where the current block starts, as JSON: passes over the data finished before it, rows of this pass read
    before it, and the state of `datasets`.

    Each of several processes reads all of it (80 MB a second of one core, far more than is trained on) and takes its
    rows of each batch: where a chunk ends depends on every document before it. With `split_dataset_by_node` batches
    would depend on the number of processes, and no run could go on with another: the state that two processes save
    makes one process read rows twice, and three fail with a KeyError (datasets 5.2).
    """

    alphabet = BYTES
    floor_bits = None
    repeats = False  # nobody knows its size: taken for more than could be learned by heart

    def __init__(self, dataset, split: str, config: DataConfig, selects: Callable[[int], bool] | None = None):
        self.rows = Rows(dataset, config, Counter())
        self.dataset = dataset.select_columns(self.rows.columns)
        self.config, self.selects = config, selects
        self.loss_on = config.loss_on if config.format == "chat" else None
        unsaid = {"column_name", "csv_separator", "exclude_words"} | ({"loss_on"} if config.format != "chat" else set())
        said = json.dumps([split, self.rows.name, *config.model_dump(exclude=unsaid).values()])
        self.fingerprint = hashlib.blake2b(said.encode(), digest_size=16).hexdigest()
        self._start = self.dataset.state_dict()
        self._seek({"pass": 0, "row": 0, "dataset": self._start})

    def _seek(self, place: dict) -> None:
        self.place = place
        self.dataset.load_state_dict(copy.deepcopy(place["dataset"]))
        self._read = enumerate(self.dataset, place["row"])
        self._next = place["row"]

    def block(self, number: int, place: dict | None = None) -> Documents:
        """The next block, or the one at `place`. After the last of a pass comes the first of the next."""
        if place is not None:
            self._seek(place)
        documents = self.collect(size=BLOCK_BYTES, most=BLOCK_DOCUMENTS)
        if not len(documents):
            self._seek({"pass": self.place["pass"] + 1, "row": 0, "dataset": self._start})
            documents = self.collect(size=BLOCK_BYTES, most=BLOCK_DOCUMENTS)
        if not len(documents):
            raise PicoError(f"dataset '{self.config.dataset}' is empty, or all of it is held out for validation")
        return documents

    def collect(self, size: int | None = None, most: int | None = None, rows: int | None = None) -> Documents:
        """The documents from here on: about `size` bytes, at most `most`, none from beyond row number `rows`."""
        self.place = {**self.place, "row": self._next, "dataset": self.dataset.state_dict()}
        documents = collect(self._selected(size, most, rows))
        if self.loss_on:
            documents.loss_on = self.loss_on
            return documents
        return documents.split(self.config.document_separator)

    def _selected(self, size, most, rows) -> Iterator[bytes]:
        count = total = 0
        while rows is None or self._next < rows:
            try:
                numbered = next(self._read, None)
            except Exception as error:  # as in `load_splits`; mostly the network
                raise DataError(f"cannot read on in dataset '{self.config.dataset}': {_reason(error)}") from None
            if numbered is None:
                return
            number, row = numbered
            self._next = number + 1
            if self.selects is None or self.selects(number):
                value = self.rows.document(row, f"{self.config.dataset}, row {number + 1}")
                yield value
                count, total = count + 1, total + len(value)
                if count == most or (size is not None and total >= size):
                    return
