"""Mixtures: a JSON file that lists data sets, and how much of each is read in an epoch.

    {"mixture": [
        {"dataset": "stories", "bytes": 2000000},
        {"dataset": "spelling", "rows": 1600},
        {"dataset": "HuggingFaceTB/smol-smoltalk", "format": "chat", "rows": 10000, "folder": "smol-smoltalk"},
        {"dataset": "openai/gsm8k:main", "format": "chat", "repeats": 2, "folder": "gsm8k"}
    ], "folders": null}

A part has the settings of any data set, and `rows` or `bytes`: at most so many documents or bytes of it, drawn at
random once, in every epoch; of a built-in corpus, new ones in each. `repeats`: how often they are read in an epoch.
With "folders": "DIR" the parts that name a folder are read from DIR/FOLDER, which has the layout of their data set, in
place of the Hub: where there is no network, or to read what was downloaded before.

An epoch holds all parts whole, so their shares are exact; its documents lie in one random order, as those of one data
set do, and training goes on from any place in it.
"""

import copy
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field, model_validator

from pico.base.config import Config, DataConfig
from pico.base.errors import PicoError
from pico.base.files import LIMIT, read_json
from pico.base.symbols import BYTES, Alphabet
from pico.data.chat import unpack_turns
from pico.data.corpus import BUILT_IN, Endless
from pico.data.documents import Documents
from pico.data.encoding import encoded
from pico.data.hub import Stream
from pico.data.packing import shuffled
from pico.data.reading import Reading, byte_size, plural
from pico.data.tokens import Symbols

KEY = (2, 99)  # which documents are drawn, whatever the training seed
Amount = Annotated[int, Field(ge=1, le=10**15)]


class MixturePart(DataConfig):
    """One data set of a mixture."""

    rows: Amount | None = Field(None, description="documents of it in an epoch, at most")
    bytes: Amount | None = Field(None, description="bytes of it in an epoch, at most")
    repeats: Annotated[int, Field(ge=1, le=1000)] = Field(1, description="times they are read in an epoch")
    folder: str | None = Field(None, description="where it lies in the mixture's `folders`")

    @model_validator(mode="after")
    def _one_amount(self):
        if self.rows and self.bytes:
            raise ValueError(f"{self.dataset}: rows and bytes were both given: choose one")
        return self

    def config(self, folders: str | None) -> DataConfig:
        own = {name: getattr(self, name) for name in DataConfig.model_fields}
        if folders and self.folder:
            own["dataset"] = str(Path(folders) / self.folder)
        return DataConfig(**own)


class MixtureFile(Config):
    mixture: list[MixturePart] = Field(min_length=1, description="the data sets")
    folders: str | None = Field(None, description="folder that holds those of the parts")


def is_mixture(dataset: str) -> bool:
    """Whether this is a .json file with a `mixture`."""
    file = Path(dataset).expanduser()
    if file.suffix.lower() != ".json" or not file.is_file() or file.stat().st_size > LIMIT:
        return False
    text = file.read_bytes()
    try:
        content = json.loads(text)
        return isinstance(content, dict) and "mixture" in content
    except (ValueError, RecursionError):
        return text.lstrip().startswith(b'{"mixture"') or text.split()[:2] == [b"{", b'"mixture":']


def holds_chats(data: DataConfig) -> bool:
    """Whether any of its documents are conversations."""
    if is_mixture(data.dataset):
        return any(
            holds_chats(part) for part in MixtureFile.build(**read_json(Path(data.dataset).expanduser())).mixture
        )
    return data.format == "chat" or data.dataset in set(BUILT_IN) - {"stories"}


class Joined(Documents):
    """Documents of several kinds as one sequence. A place is one of the first kind's, or so far behind them.

    which, inside: (n,) of each document its part, and which it is there; by default all of one part after the other.
    """

    plain = False

    def __init__(
        self,
        parts: Sequence[Documents | Symbols],
        which: np.ndarray | None = None,
        inside: np.ndarray | None = None,
    ):
        if which is None or inside is None:
            which = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
            inside = np.concatenate([np.arange(len(part)) for part in parts])
        self.parts, self.which, self.inside = parts, which, inside
        spans = [int((part.starts + part.lengths).max(initial=0)) for part in parts]
        self.bases = np.cumsum([0, *spans[:-1]])
        starts, lengths = np.empty(len(which), np.int64), np.empty(len(which), np.int64)
        whole = np.empty(len(which), bool)
        for number, part in enumerate(parts):
            mine = which == number
            there = inside[mine]
            starts[mine], lengths[mine] = part.starts[there] + self.bases[number], part.lengths[there]
            whole[mine] = np.broadcast_to(part.whole, len(part))[there]
        super().__init__(b"", starts, lengths)
        self.whole = whole

    def __getitem__(self, index: int) -> bytes:
        return self.parts[self.which[index]][int(self.inside[index])]

    def select(self, index: np.ndarray) -> "Joined":
        return Joined(self.parts, self.which[index], self.inside[index])

    def take(self, places: np.ndarray) -> np.ndarray:
        out, which = np.empty(len(places), np.int64), self._part(places)
        for number in np.unique(which):
            mine = which == number
            out[mine] = self.parts[number].take(places[mine] - self.bases[number])
        return out

    def prefetch(self, places: np.ndarray) -> None:
        places = places.ravel().clip(min=0)
        which = self._part(places)
        for number in np.unique(which):
            self.parts[number].prefetch(places[which == number] - self.bases[number])

    def _part(self, places: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.bases, places, side="right") - 1


class Mixture:
    """What a mixture trains on: of each part its documents, so many times. All that `Batches` reads of Documents."""

    loss_on = place = None

    alphabet: Alphabet = BYTES

    def __init__(self, parts: Sequence, repeats: Sequence[int]):
        self.parts, self.times = parts, repeats
        self.repeats = all(part.repeats for part in parts)
        self.size = sum(part.size * times for part, times in zip(parts, repeats))
        self.fingerprint = self._hash()

    def __len__(self) -> int:
        return sum(len(part) * times for part, times in zip(self.parts, self.times))

    def block(self, number: int, place: dict | None = None) -> Joined:
        blocks = [part.block(number) for part in self.parts]
        return Joined([block for block, times in zip(blocks, self.times) for _ in range(times)])

    def encoded(self, alphabet: Alphabet, context_len: int, log: Callable) -> "Mixture":
        made = copy.copy(self)
        made.parts, made.alphabet = [encoded(part, alphabet, context_len, log) for part in self.parts], alphabet
        made.fingerprint = made._hash()
        return made

    def notes(self) -> list[str]:
        """What they are, in words."""
        return [f"of {self.alphabet.size:,} kinds, in a mixture"]

    def _hash(self) -> str:
        said = [(part.fingerprint, times) for part, times in zip(self.parts, self.times)]
        return hashlib.blake2b(repr(said).encode(), digest_size=16).hexdigest()


def open_mixture(
    file: str, seed: int, reading: Reading, open_data: Callable[[DataConfig, int, Reading], tuple]
) -> tuple[Mixture, Joined]:
    """(what is trained on, validation documents in the same shares). Raises PicoError with all that is wrong."""
    path = Path(file).expanduser()
    try:
        found = MixtureFile.build(**read_json(path))
    except PicoError as error:
        raise PicoError(f"{path}: {str(error).removeprefix(f'{path} ')}") from None
    parts, held, notes, problems = [], [], [], []
    for part in found.mixture:
        config, note = part.config(found.folders), Reading()
        try:
            train, validation = open_data(config, seed, note)
            parts.append(_some(train, part, config, seed))
            held.append(validation)
            notes.append(note)
        except PicoError as error:
            problems.append(str(error))
    if problems:
        raise PicoError(f"{path}: {'; '.join(dict.fromkeys(problems))}")
    mixture = Mixture(parts, [part.repeats for part in found.mixture])
    sizes = np.array([text_bytes(part) for part in parts])
    shares = sizes * mixture.times / (sizes * mixture.times).sum()
    for number, (part, documents, note) in enumerate(zip(found.mixture, parts, notes)):
        _tell(reading, f"part {number + 1}", part, documents, int(sizes[number]), float(shares[number]), note)
    validation = _in_shares(held, shares)
    total = byte_size(int((sizes * mixture.times).sum()))
    reading.note("training", f"{plural(len(parts), 'data set')}, {plural(len(mixture), 'document')}, {total}")
    reading.note("validation", plural(len(validation), "document"), "of all data sets, in the same shares")
    return mixture, validation


def _tell(reading: Reading, heading: str, part: MixturePart, documents, size: int, share: float, note: Reading) -> None:
    amount = f"{plural(len(documents), 'document')}, {byte_size(size)}" + (f" x {part.repeats}" * (part.repeats > 1))
    left_out = f"left out: {note.passed_over()}" if note.passed_over() else ""
    few = f"fewer than the {part.rows:,} rows asked for" if part.rows and len(documents) < part.rows else ""
    reading.note(heading, f"{share:.2%}", part.dataset, amount, few, *note.notes.get("tables", []), left_out)
    for warning in note.warnings:
        reading.warn(f"{part.dataset}: {warning}")


def _some(documents: Documents | Stream, part: MixturePart, config: DataConfig, seed: int) -> Documents:
    """As much of the documents as a part asks for."""
    if isinstance(documents, Stream):
        if not (part.rows or part.bytes):
            raise PicoError(f"'{part.dataset}' is a stream without an end: give rows or bytes")
        return documents.collect(size=part.bytes, most=part.rows)
    if config.dataset in BUILT_IN:
        return Endless(config, seed, part.rows, part.bytes) if part.rows or part.bytes else documents
    if part.rows and part.rows < len(documents):
        return documents.select(np.sort(shuffled(np.arange(part.rows), len(documents), *KEY)))
    if part.bytes and part.bytes < documents.size:
        order = shuffled(np.arange(len(documents)), len(documents), *KEY)
        count = int(np.searchsorted(np.cumsum(documents.lengths[order]), part.bytes, side="right"))
        some = documents.select(np.sort(order[: max(1, count)]))
        if not count and not documents.loss_on:  # one that is longer than all that is asked for
            some.lengths = np.full(1, part.bytes)
        return some
    return documents


def text_bytes(documents: Documents) -> int:
    """Bytes of the text alone: a conversation has a mark before each turn."""
    if documents.loss_on is None:
        return documents.size
    return sum(len(text) for document in documents for _, text in unpack_turns(document))


def _in_shares(held: list[Documents], shares: np.ndarray) -> Joined:
    """Documents of all parts in a random order, so many of each that its bytes are as its share."""
    total = min(part.size / share for part, share in zip(held, shares))
    kept = [part.first(max(1, int(total * share))) for part, share in zip(held, shares)]
    joined = Joined(kept)
    return joined.select(shuffled(np.arange(len(joined)), len(joined), *KEY))
