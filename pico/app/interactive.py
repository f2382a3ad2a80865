"""`run --interactive`: type a text and read how it goes on; settings change in between.

    > Once upon a time
    Once upon a time there was a ...
    > /temp 0.5
    temperature = 0.5

Continuations go to stdout, all else to stderr, so a pipe may drive it: a prompt or a command a line.
"""

import sys
from collections.abc import Iterator

from pico.app.samples import argument_bytes, write_samples
from pico.base.config import ConfigError, meant
from pico.base.errors import PicoError
from pico.base.log import log
from pico.decode.generation import Step, generate
from pico.decode.sampling import Sampling

SETTINGS = {  # what is typed: the field of Sampling, what it does
    "/temp": ("temperature", "0 is greedy"),
    "/topk": ("top_k", "only the k likeliest; 0 is off"),
    "/topp": ("top_p", "only the likeliest that make up p; 1 is off"),
    "/minp": ("min_p", "only what is p times as likely as the likeliest; 0 is off"),
    "/penalty": ("repetition_penalty", "above 1, what was just written is less likely; 1 is off"),
    "/max": ("max_bytes", "bytes to write at most"),
    "/seed": ("seed", "of the next text; every text adds one"),
}
OTHERS = {"/reset": "settings as they were at the start", "/help": "these lines", "/quit": "leave, as Ctrl-D does"}
WAYS = (
    "Type a text to continue. Enter alone goes on with the last one, Ctrl-C ends it early.\n"
    "/help lists the settings, Ctrl-D leaves."
)


def interact(model, sampling: Sampling, show_routed: bool = False, **options) -> None:
    """The loop, until its input ends. options: those of `generate`."""
    start, text, terminal = sampling, b"", sys.stdin.isatty() and sys.stdout.isatty()
    if terminal:
        log(WAYS)
        edit(names(OTHERS))
    while (line := ask(terminal)) not in (None, "/quit"):
        try:
            if line.startswith("/") and not line.startswith("//"):
                sampling = obey(line, sampling, start, OTHERS)
                continue
            prompt, written = argument_bytes(line.removeprefix("/")), []
            generation = generate(model, prompt or text, sampling, echo=bool(prompt), **options)
            try:
                write_samples(heard(generation, written), 1, show_routed)
            except KeyboardInterrupt:  # the text so far is what there is of it
                print(flush=True)
            else:
                if not sys.stdout.isatty():  # a terminal has had its line end
                    print(flush=True)
            text = b"".join([b"" if prompt else text, *written])
            sampling = next_seed(sampling)
        except PicoError as error:
            log(f"error: {error}")


def ask(terminal: bool) -> str | None:
    """The next line, None at the end of the input."""
    while True:
        try:
            return input("> " if terminal else "")
        except EOFError:
            if terminal:
                log()
            return None
        except KeyboardInterrupt:  # drops what was typed
            log()


def edit(words: list[str]) -> None:
    """Lines can be edited, and earlier ones called back, where Python has readline; Tab completes the words."""
    try:
        import readline
    except ImportError:
        return
    readline.set_completer(lambda text, n: [*(word for word in words if text and word.startswith(text)), None][n])
    readline.set_completer_delims("")
    readline.parse_and_bind("tab: complete")


def heard(steps, written: list[bytes]) -> Iterator[Step]:
    """The same steps; their bytes are kept in `written`."""
    for step in steps:
        written.append(step.bytes)
        yield step


def next_seed(sampling: Sampling) -> Sampling:
    """The settings of the text after this one."""
    return sampling if sampling.seed is None else sampling.model_copy(update={"seed": (sampling.seed + 1) % 2**64})


def names(others: dict[str, str]) -> list[str]:
    """Of all commands, without what is typed behind them."""
    return [*SETTINGS, *(each.partition(" ")[0] for each in others)]


def obey(line: str, sampling: Sampling, start: Sampling, others: dict[str, str]) -> Sampling:
    """The settings after a command, which says what it did. Raises PicoError for what is none. others: for its help."""
    name, _, value = line.strip().partition(" ")
    if name == "/help":
        for each, (field, what) in SETTINGS.items():
            log(f"{each:<9} {getattr(sampling, field)!s:<6} {what}")
        for each, what in others.items():
            log(f"{each:<16} {what}")
        return sampling
    if name == "/reset":
        log("settings are those of the start")
        return start
    if name not in SETTINGS:
        raise PicoError(f"unknown command {name}: {meant(name, names(others))}")
    field, _ = SETTINGS[name]
    if value := value.strip():
        try:
            sampling = Sampling.build(**{**dict(sampling), field: value})
        except ConfigError as error:
            raise PicoError(str(error).replace(f"Sampling: {field} = {value!r}", f"{name} {value}")) from None
    log(f"{field} = {getattr(sampling, field)}")
    return sampling
