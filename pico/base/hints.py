"""Commands to type next, as the user started this one, quoted for a shell.

log(f"next: {command('run', path, run, *prompt(text))}")
# next: uv run python picolm.py run models/m a --prompt 'To be'
"""

import os
import shlex
import subprocess
import sys
from pathlib import Path

PROMPT_BYTES = 32  # of a document, at most, that a hint shows as a prompt


def command(*words) -> str:
    """A command line of Pico's: started as this process was, its words quoted."""
    return quoted(*started(sys.orig_argv, sys.argv[0], os.environ), *words)


def started(typed: list[str], script: str, environment) -> list[str]:
    """The words before a command's name. typed: sys.orig_argv, the interpreter first; script: sys.argv[0]."""
    by_uv = ["uv", "run"] if "UV_RUN_RECURSION_DEPTH" in environment else []
    python = ["python"] if by_uv else typed[:1]
    match Path(script).parts[-2:]:
        case (*_, "picolm" | "picolm.exe"):
            return [*by_uv, "picolm"]
        case (*_, "picolm.py"):
            return [*by_uv, *python, script]
        case ("pico", "__main__.py"):
            return [*by_uv, *python, "-m", "pico"]
    return ["python", "picolm.py"]


def quoted(*words) -> str:
    """Words as one line that the shell of this system takes apart again."""
    words = [str(word) for word in words]
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


def prompt(document: bytes) -> list[str]:
    """--prompt and the first words of a document, or nothing where they are no plain line of text."""
    try:
        text = document[:PROMPT_BYTES].decode("utf-8")
    except UnicodeDecodeError as error:
        if error.end < min(len(document), PROMPT_BYTES) or not error.start:  # not just a character cut in two
            return []
        text = document[: error.start].decode("utf-8")
    line, newline, _ = text.partition("\n")
    if not newline and len(document) > PROMPT_BYTES and " " in line.strip():
        line = line.rpartition(" ")[0]
    line = line.strip()
    return ["--prompt", line] if line.isprintable() and line not in ("", "-") else []
