"""What a command says: its product on stdout, what else it says on stderr, an error as one line."""

import json
import math
import re
import sys
from pathlib import Path

from typer.exceptions import TyperException

from pico.app import process
from pico.base import hints
from pico.base.config import ConfigError
from pico.base.errors import PicoError
from pico.base.log import log


def print_results(*renderables) -> None:
    """One below the other, an empty line between."""
    for i, each in enumerate(renderables):
        if i:
            print_result("")
        print_result(each)


def print_result(renderable, **how) -> None:
    """Product, for people. Where stdout fails, stderr has it: what took an hour to compute is not lost."""
    from rich.console import Console

    try:
        Console(highlight=False).print(renderable, **how)
        sys.stdout.flush()
    except process.StdoutFailed as failure:
        if not failure.quiet:
            Console(highlight=False, stderr=True).print(renderable, **how)
        raise


def print_json(facts: dict) -> None:
    """Product, for programs: one line of strict JSON, where what is not a number is null."""
    from rich.text import Text

    print_result(Text(json.dumps(finite(facts), allow_nan=False)), soft_wrap=True)


def finite(value):
    """Nested facts with None in the place of infinities and NaN, which JSON does not know."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def check_writable(file: Path, flag: str) -> None:
    """Raises PicoError if a file cannot be written: known before the work whose result it is to hold."""
    if not file.absolute().parent.is_dir():
        raise PicoError(f"{flag} {file}: there is no folder {file.parent}; make it, or write elsewhere")
    there = file.exists()
    try:
        file.open("ab").close()
    except OSError as error:
        raise PicoError(f"{flag} {file}: {error.strerror}; write elsewhere") from None
    if not there:
        file.unlink()


def run_app(app, arguments: list[str]) -> int:
    """Runs a command and returns its exit code. What the user can mend is one line on stderr and code 2."""
    process.busy = True
    try:
        code = app(arguments, standalone_mode=False) or 0
        sys.stdout.flush()
        return code
    except ConfigError as error:
        problem, code = by_flags(error, app, arguments), 2
    except PicoError as error:
        problem, code = str(error), 2
    except TyperException as error:  # a wrong flag or value
        problem, code = mistyped(error), 2
    except SystemExit as end:  # another process failed, and says why
        return end.code if isinstance(end.code, int) else 1
    except process.StdoutFailed as error:
        if error.quiet:  # what a shell shows of a command that the closed pipe ended
            return 141
        problem, code = str(error), 2
    except OSError as error:  # a full disk, a folder that may not be written
        problem, code = f"{error.filename or 'input or output'}: {error.strerror or error}", 2
    finally:
        process.busy = False
    log(f"error: {' '.join(problem.split())}")
    return code


def by_flags(error: ConfigError, app, arguments: list[str]) -> str:
    """What is wrong with a command's settings, which it calls as they were typed. Those of a file keep their names."""
    from typer.core import TyperGroup
    from typer.main import get_command

    group = get_command(app)
    assert isinstance(group, TyperGroup), "it has several commands"
    parameters = group.commands[arguments[0]].params
    flags = {p.name.removeprefix("dataset_"): p.opts[0] if p.opts[0] != p.name else p.name.upper() for p in parameters}
    typed = {word.partition("=")[0] for word in arguments} | {p.name.upper() for p in parameters}
    named = set()

    def flag(match: re.Match) -> str:
        named.add(flag := flags.get(match[1], match[1]))
        return flag

    # what has an underscore is a name wherever it stands; a plain word only in front of its value
    text = re.sub(r"\b([a-z]+_[a-z_]+|[a-z]+(?=(?:\.\d+)* = ))(?:\.\d+)*\b", flag, str(error))
    return text.removeprefix(f"{error.config}: ") if named & typed else str(error)


def mistyped(error: TyperException) -> str:
    """What is wrong with a command line, in the style of all errors."""
    text = error.format_message().removesuffix(".")
    context = getattr(error, "ctx", None)
    words = [context.info_name] if context and context.parent else []
    text = text.replace(". Did you", "; did you")
    return f"{text[0].lower()}{text[1:]} (see {hints.command(*words, '--help')})"
