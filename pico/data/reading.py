"""What was read, in words for a person. It is filled while data is opened; whoever opened the data shows it."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from pico.base.config import TrainConfig

NAMES = 3  # of files listed by name
WIDTH = 12  # of the first column


@dataclass
class Reading:
    """Notes on opened data. notes: heading -> phrases; left_out: how many of each kind; warnings: whole sentences."""

    notes: dict[str, list[str]] = field(default_factory=dict)
    left_out: Counter = field(default_factory=Counter)
    warnings: list[str] = field(default_factory=list)

    def note(self, heading: str, *phrases: str) -> None:
        """Adds phrases behind a heading such as 'training', each once."""
        known = self.notes.setdefault(heading, [])
        known += [phrase for phrase in dict.fromkeys(phrases) if phrase and phrase not in known]

    def warn(self, sentence: str) -> None:
        """Adds a warning, once."""
        if sentence not in self.warnings:
            self.warnings.append(sentence)

    def lines(self) -> list[str]:
        """One line a heading: 'training    2 documents, 86 bytes; from train.jsonl'."""
        told = {heading: "; ".join(phrases) for heading, phrases in self.notes.items() if phrases}
        if left_out := self.passed_over():
            told["left out"] = left_out
        return [f"{heading:<{WIDTH}}{text}" for heading, text in told.items()]

    def passed_over(self) -> str:
        """'README.md, .png (3)', or ''."""
        return ", ".join(kind if n == 1 else f"{kind} ({n:,})" for kind, n in self.left_out.items() if n)


def amount(documents) -> str:
    """'1,234 documents, 5.6 MB'."""
    return f"{plural(len(documents), 'document')}, {byte_size(documents.size)}"


def plural(number: int, thing: str) -> str:
    """'1 file', '2 files'."""
    return f"{number:,} {thing}{'s' * (number != 1)}"


def byte_size(number: int) -> str:
    """'9,999 bytes', '10.0 kB', '1,234.5 MB'."""
    unit, scale = next(((u, s) for u, s in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)) if number >= 10 * s), ("", 1))
    return f"{number / scale:,.1f} {unit}" if unit else plural(number, "byte")


def file_names(files: Iterable[Path]) -> str:
    """'from a.txt, b.txt' or 'from 12 files, a.txt to l.txt'."""
    names = [file.name for file in files]
    if len(names) <= NAMES:
        return f"from {', '.join(names)}"
    return f"from {len(names):,} files, {names[0]} to {names[-1]}"


def training_plan(config: TrainConfig, steps: int | None, chunks: int | None, unit: str = "byte") -> list[str]:
    """Phrases on the training to come. steps: of the whole run; chunks: in an epoch; None where unknown."""
    phrases = []
    if steps:
        each = byte_size(config.step_symbols) if unit == "byte" else plural(config.step_symbols, unit)
        phrases.append(f"{plural(steps, 'step')} of {each}")
        if chunks:
            epochs = f"{steps * config.step_chunks / chunks:.3g}"
            phrases.append(f"{epochs} epoch{'s' * (epochs != '1')}")
    elif chunks:
        phrases.append(f"an epoch is {plural(-(-chunks // config.step_chunks), 'step')}")
    if config.max_minutes:
        phrases.append(f"at most {config.max_minutes:g} min")
    if config.max_flops:
        phrases.append(f"at most {config.max_flops:.3g} FLOP")
    return phrases
