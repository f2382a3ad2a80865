"""Tokens: byte-level BPE by the `tokenizers` library, exact for any bytes.

    tokenizer = read("tokenizer.json")              # ours, or another model's
    ids = tokenizer.encode(b"caf\\xc3\\xa9 \\xff")      # UTF-8 by the library, any other byte as the token of that byte
    tokenizer.decode(ids)                           # the same bytes, by a table

Of a tokenizer.json the merges and the pre-tokenizer are used. Normalisers and prefix spaces would change the text, and
added tokens would be found in it: the library is given none of them, so that no text can forge a control symbol.
"""

import codecs
import hashlib
import json
import os
import re
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path

import numpy as np

from pico.base.errors import PicoError
from pico.base.files import open_regular, read_json
from pico.base.symbols import CONTROL_NAMES, Alphabet
from pico.data.documents import Documents

os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")  # said by us, or the library warns wherever we fork

RULES = 1  # by which text is cut: to be raised whenever the same text gives other tokens
PIECE = 1 << 14  # bytes tokenized as one
HANDFUL = 128  # pieces that the library's threads share
SAMPLE = 1 << 28  # bytes of text that a tokenizer is made of, at most
MEASURED = 10_000_000  # bytes of text that it is judged by
LARGEST = 1 << 20  # ids of a tokenizer
WORDS = re.compile(r".*[^\W\d_](?=\s)", re.DOTALL)  # up to the last letter before white space
INVALID = re.compile(r"([\udc80-\udcff]+)")  # bytes that are no UTF-8, as Python escapes them
ENDS = {  # names of bos and eos, ours first
    "bos": ("<|bos|>", "<s>", "<bos>", "[BOS]", "<|begin_of_text|>", "<|startoftext|>", "<|endoftext|>"),
    "eos": ("<|eos|>", "</s>", "<eos>", "[EOS]", "<|end_of_text|>", "<|endoftext|>", "<|im_end|>"),
}


def _spelling() -> dict[str, int]:
    """How byte-level BPE spells bytes in its vocabulary: those that can be seen as they are, others from U+0100 on."""
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [value for value in range(256) if value not in seen]
    return {chr(value): value for value in seen} | {chr(0x100 + place): value for place, value in enumerate(others)}


SPELLING = _spelling()


class BPE(Alphabet):
    """The alphabet of a tokenizer.json. fingerprint: its SHA-256. Raises PicoError if it is no byte-level BPE."""

    unit = "token"

    def __init__(self, name: str | Path, content: dict, fingerprint: str):
        self.name, self.fingerprint = str(name), fingerprint
        from tokenizers import Tokenizer

        with _understood(name):
            symbols, special, plain = _parts(content)
            super().__init__(symbols, _control(special))
            self._library, self.special = Tokenizer.from_str(json.dumps(plain)), special
        self.byte_ids = {symbol[0]: id for id, symbol in enumerate(symbols) if len(symbol) == 1}
        if missing := set(range(256)) - self.byte_ids.keys():
            raise PicoError(f"{name} is no byte-level BPE: it has no token for the byte {min(missing)}")
        self.encode(bytes(range(256)) + "  It's  1,234 \r\n\n\tcafé 日本語 ".encode())

    def encode(self, data: bytes) -> np.ndarray:
        """The ids of a text, (n,) int64, without bos and eos: its canonical tokenization."""
        return np.concatenate([np.zeros(0, np.int64), *(ids for _, ids in self._pieces([(data, 0, len(data))]))])

    def encode_documents(self, documents: Documents) -> Iterator[Iterator[np.ndarray]]:
        """Of each document the ids, in pieces; to be read in this order."""
        places = zip(documents.starts.tolist(), documents.lengths.tolist())
        for _, pieces in groupby(self._pieces((documents.buffer, *place) for place in places), key=itemgetter(0)):
            yield map(itemgetter(1), pieces)

    def _pieces(self, texts: Iterable[tuple]) -> Iterator[tuple[int, np.ndarray]]:
        """(number of the text, ids of a piece) of texts, each given as (buffer, start, length)."""
        pieces = ((number, *piece) for number, text in enumerate(texts) for piece in valid_pieces(*text))
        while handful := list(islice(pieces, HANDFUL)):
            split = [INVALID.split(text) for *_, text in handful]  # each: valid, invalid, valid ...
            valid = [run for runs in split for run in runs[::2]]
            found = iter(self._library.encode_batch_fast(valid, add_special_tokens=False))
            for (number, data, _), runs in zip(handful, split):
                ids: list[int] = []
                for place, run in enumerate(runs):
                    ids += (self.byte_ids[ord(x) - 0xDC00] for x in run) if place % 2 else next(found).ids
                if self.decode(ids) != data:
                    raise PicoError(f"{self.name} does not keep the text as it is: expected a byte-level BPE")
                yield number, np.array(ids, np.int64)

    def portable(self) -> str:
        """A tokenizer.json by which any program gives these ids, behind bos. What it finds in a text of the names of
        control symbols is up to that program."""
        content = json.loads(self._library.to_str())
        content["model"]["vocab"] |= self.special
        plain = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
        content["added_tokens"] = [
            {"id": id, "content": name, **plain} for name, id in sorted(self.special.items(), key=itemgetter(1))
        ]
        bos = next(name for name, id in self.special.items() if id == self.bos)
        single = [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
        content["post_processor"] = {
            "type": "TemplateProcessing",
            "single": single,
            "pair": [*single, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {bos: {"id": bos, "ids": [self.bos], "tokens": [bos]}},
        }
        content["decoder"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
        return json.dumps(content, ensure_ascii=False, indent=1) + "\n"


def valid_pieces(buffer, start: int, length: int) -> Iterator[tuple[bytes, str]]:
    """(bytes, the same with invalid ones escaped) of a text's pieces, each as long as may be.

    They end between a letter and white space, where all common pre-tokenizers split, so that its tokens are those of
    the whole text; where there is no such place, behind any character.
    """
    end = start + length
    while start < end:
        data = buffer[start : min(end, start + PIECE)]
        if start + len(data) == end:
            text = data.decode("utf-8", "surrogateescape")
        else:
            text = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode(data)
            text = found[0] if (found := WORDS.match(text)) else text
            data = data[: len(text.encode("utf-8", "surrogateescape"))]
        yield data, text
        start += len(data)


# --- making one -------------------------------------------------------------------------------------------------------


def train_tokenizer(documents: Documents, vocab_size: int, log: Callable[[str], object] = lambda text: None) -> str:
    """A new tokenizer.json, the same for the same text: bytes, merges within GPT-2's words, then the control symbols.

    It has fewer than `vocab_size` ids if the text has no more pairs that occur twice. log: is told how far it is.
    """
    check_size(vocab_size)
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(CONTROL_NAMES),
        min_frequency=2,
        initial_alphabet=list(SPELLING),
        show_progress=False,  # it would write empty lines to stdout
    )
    tokenizer.train_from_iterator(_sample(documents, log), trainer)
    tokenizer.add_special_tokens([AddedToken(f"<|{name}|>", normalized=False) for name in CONTROL_NAMES])
    return tokenizer.to_str(pretty=True) + "\n"


def check_size(vocab_size: int) -> None:
    """Raises PicoError for a size that does not even hold the bytes, and for one past all reason."""
    least = 256 + len(CONTROL_NAMES)
    if not least <= vocab_size <= LARGEST:
        raise PicoError(f"--vocab-size {vocab_size}: expected {least} (bytes and control symbols) to {LARGEST}")


def _sample(documents: Documents, log: Callable[[str], object]) -> Iterator[str]:
    """The valid text, in pieces; of more than SAMPLE one in so many."""
    places, read = zip(documents.starts.tolist(), documents.lengths.tolist()), 0
    for number, (data, text) in enumerate(
        piece for place in places for piece in valid_pieces(documents.buffer, *place)
    ):
        read += len(data)
        if number % -(-documents.size // SAMPLE) == 0:
            yield from filter(None, INVALID.split(text)[::2])
        if number % HANDFUL == 0:
            log(f"reading the text, {read / documents.size:.0%}")
    log("merging")


def tokenizer_facts(tokenizer: BPE, documents: Documents) -> dict:
    """What a tokenizer makes of the first documents, about MEASURED bytes of them."""
    documents = documents.first(MEASURED)
    tokens = sum(len(piece) for pieces in tokenizer.encode_documents(documents) for piece in pieces)
    return {
        "vocabulary": tokenizer.size,
        "bytes_per_token": round(documents.size / tokens, 3),
        "bytes_of_the_longest": int(tokenizer.lengths.max()),
    }


# --- reading one ------------------------------------------------------------------------------------------------------


def read_tokenizer(file: str | Path) -> BPE:
    """The tokenizer in a file. Raises PicoError if it is missing, broken or of another kind."""
    try:
        content = read_json(file)
    except FileNotFoundError:
        raise PicoError(f"no tokenizer at {file}: expected a tokenizer.json") from None
    return BPE(file, content, checksum(file))


def find_tokenizer(name: str | Path) -> Path:
    """The file of this path, if there is one (in a folder, its tokenizer.json), or of this name on the Hub.

    Raises PicoError where it cannot be had.
    """
    path = Path(name).expanduser()
    if path.exists():
        return path / "tokenizer.json" if path.is_dir() else path
    if path.suffix == ".json":
        raise PicoError(f"no tokenizer at {path}: expected a tokenizer.json, or the name of a model on the Hub")
    from pico.data import hub

    return hub.download_tokenizer(str(name))


def checksum(file: str | Path) -> str:
    """SHA-256 of a file."""
    with open_regular(file) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def _understood(name: str | Path) -> Generator[None]:
    """Turns what a file of another kind gives rise to, in the library or here, into a PicoError."""
    try:
        yield
    except BaseException as error:  # of a dozen classes; a panic in Rust is no Exception
        if isinstance(error, (KeyboardInterrupt, SystemExit, MemoryError)):
            raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise PicoError(f"{name} is no byte-level BPE tokenizer that can be read: {reason}") from None


def _parts(content: dict) -> tuple[list[bytes], dict[str, int], dict]:
    """(the bytes of each id; {name: id} of the special tokens; what of it is for the library)."""
    model, added = content["model"], content.get("added_tokens") or []
    kinds = {part.get("type") for part in _inside(content.get("pre_tokenizer"))}
    affix = model.get("continuing_subword_prefix") or model.get("end_of_word_suffix")
    if model.get("type", "BPE") != "BPE" or "merges" not in model or "ByteLevel" not in kinds or affix:
        raise PicoError(
            f"its model is {model.get('type')}, its pre-tokenizers are {', '.join(map(str, kinds)) or 'none'}"
        )
    special = {token["content"]: token["id"] for token in added if token.get("special")}
    vocabulary = {word: id for word, id in model["vocab"].items() if word not in special}
    plain_added = {token["content"]: token["id"] for token in added if not token.get("special")}
    ids = [*vocabulary.values(), *special.values(), *plain_added.values()]
    if any(type(id) is not int or not 0 <= id < LARGEST for id in ids):
        raise PicoError(f"an id is no number below {LARGEST}")
    symbols = [b""] * (max(ids) + 1)
    for word, id in vocabulary.items():
        symbols[id] = bytes(SPELLING[letter] for letter in word) if SPELLING.keys() >= set(word) else b""
    for word, id in plain_added.items():
        symbols[id] = symbols[id] or word.encode("utf-8", "surrogatepass")
    if wrong := [name for name, id in special.items() if symbols[id]]:
        raise PicoError(f"{wrong[0]} has the id of another token")
    for part in _inside(content["pre_tokenizer"]):
        part |= {"add_prefix_space": False} if part.get("type") == "ByteLevel" else {}
    rules = {"type": "BPE", "vocab": vocabulary, "merges": model["merges"]}
    rules["ignore_merges"] = model.get("ignore_merges") is True  # of a word that is a token
    plain = {"version": "1.0", "added_tokens": [], "pre_tokenizer": content["pre_tokenizer"], "model": rules}
    return symbols, special, plain


def _inside(value) -> Iterator[dict]:
    """All objects in a JSON value, itself first."""
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _inside(inner)


def _control(special: dict[str, int]) -> dict[str, int]:
    """{name: id} of the control symbols among the special tokens. One that ends a document may begin it, too."""
    own = {name: special[f"<|{name}|>"] for name in CONTROL_NAMES if f"<|{name}|>" in special}
    ends = {name: next((special[word] for word in words if word in special), None) for name, words in ENDS.items()}
    if ends["eos"] is None:
        raise PicoError(f"none of its special tokens ends a document: expected one of {', '.join(ENDS['eos'])}")
    return {**own, "bos": ends["eos"] if ends["bos"] is None else ends["bos"], "eos": ends["eos"]}
