"""Command-line options, made from the fields of a config, so that names, defaults and help cannot drift apart.

    MODEL = Options([ModelConfig], {"Width": ["dim", "next_tokens"]}, settable=True)

    @app.command()
    @flags(model=MODEL)
    def init(path: Path, model: dict): ...

gives `init` an option for each field that is named and `--set KEY=VALUE` for every field; `model` holds those that were
typed. Bounds are left to the config, which reports every bad value at once.
"""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal, get_args, get_origin

import typer

from pico.base.config import Config, DataConfig, TrainConfig, meant
from pico.base.errors import PicoError
from pico.base.shapes import GPTConfig, ModelConfig


class Options:
    """Fields of configs as options, in panels of the help: {panel: [field, ...]}; `settable`: all of them, by --set.

    A field that several have is told as the first one tells it.
    """

    def __init__(self, configs: list[type[Config]], panels: dict[str, list[str]], settable=False):
        self.settable = settable
        self.fields = {}
        for config in configs:
            self.fields |= {name: info for name, info in config.model_fields.items() if name not in self.fields}
        self.parameters = {
            field: parameter(self.fields[field], configs[0].flag(field), panel)
            for panel, fields in panels.items()
            for field in fields
        }


def parameter(info, flag: str, panel: str) -> inspect.Parameter:
    """A command's parameter that typer makes an option of: type, default and help are the field's."""
    kind, help = plain(info.annotation), info.description
    if get_origin(kind) is Literal:  # the config says what it expected; typer's way would widen the help
        help, kind = f"{help}: {', '.join(get_args(kind))}", str
    # a switch that is off by default has only its positive form
    declared = [flag if not info.default else f"{flag}/--no{flag[1:]}"] if kind is bool else []
    option = typer.Option(*declared, help=help, rich_help_panel=panel)
    return keyword(flag[2:].replace("-", "_"), Annotated[kind | None, option], info.default)


def keyword(name: str, annotation, default=inspect.Parameter.empty) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def plain(annotation):
    """The type to parse: without `| None` and without pydantic's bounds."""
    inner = [a for a in get_args(annotation) if a is not type(None)] if type(None) in get_args(annotation) else []
    annotation = inner[0] if inner else annotation
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def flags(**groups: Options):
    """Replaces each parameter `group` of a command by its options; the command receives the fields that were typed."""
    settable = {group: options for group, options in groups.items() if options.settable}

    def decorate(function):
        def command(ctx: typer.Context, **values):
            sources = {name: ctx.get_parameter_source(name) for name in values}
            typed = {name for name, source in sources.items() if source and source.name != "DEFAULT"}
            texts = values.pop("settings", None) or []
            for group, options in groups.items():
                every = {field: (p.name, values.pop(p.name)) for field, p in options.parameters.items()}
                values[group] = {field: value for field, (name, value) in every.items() if name in typed}
            for text in texts:
                assign(text, [(options.fields, values[group]) for group, options in settable.items()])
            return function(**values)

        own = [p for p in inspect.signature(function).parameters.values() if p.name not in groups]
        made = [p for options in groups.values() for p in options.parameters.values()]
        made += [keyword("settings", setting(settable.values()), None)] if settable else []
        own = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
        vars(command)["__signature__"] = inspect.Signature([keyword("ctx", typer.Context), *own, *made])
        command.__name__, command.__doc__ = function.__name__, function.__doc__
        return command

    return decorate


def setting(groups):
    """The option --set of a command."""
    rest = [f for options in groups for f in options.fields if f not in options.parameters]
    help = f"KEY=VALUE: {', '.join(rest)}"
    return Annotated[list[str] | None, typer.Option("--set", help=help, metavar="<k=v>")]


def assign(text: str, groups: list[tuple[dict, dict]]) -> None:
    """Adds KEY=VALUE to what was typed of the group that has KEY. groups: (its fields, those typed) of each.

    VALUE stays text: the config reads it, and says what it expected. Raises PicoError where none has the key, or it was
    typed before.
    """
    key, equals, value = text.partition("=")
    if not equals:
        raise PicoError(f"--set {text}: expected KEY=VALUE")
    for fields, typed in groups:
        if key in fields:
            if key in typed:
                raise PicoError(f"--set {text}: {key} was given before: choose one")
            typed[key] = value
            return
    raise PicoError(f"--set {text}: no '{key}': {meant(key, [f for fields, _ in groups for f in fields])}")


# --- what commands have in common -------------------------------------------------------------------------------------


def path(text: str | Path) -> Path:
    """A path as it was typed; an empty one, mostly an unset variable, would be the current folder."""
    if text == "":
        raise PicoError("'' is no path: give the name of a file or folder ('.' is the current one)")
    if str(text).startswith("hf://"):
        raise PicoError(f"{text} is on the Hugging Face Hub: expected a path on this disk")
    return Path(text)


def trained(text: str | Path) -> Path:
    """The folder of a model that is there: as it was typed, or that of hf://OWNER/NAME, which is downloaded."""
    if not str(text).startswith("hf://"):
        return path(text)
    from pico.runs.folder import local_folder

    return local_folder(text)


def argument(kind, help: str, parser: Callable | None = None):
    return Annotated[kind, typer.Argument(help=help, parser=parser or (path if kind in PATHS else None))]


def option(kind, help: str, panel: str | None = None, *names: str, parser: Callable | None = None):
    parser = parser or (path if kind in PATHS else None)
    return Annotated[kind, typer.Option(*names, help=help, rich_help_panel=panel, parser=parser)]


def switch(name: str, help: str, panel: str | None = None):
    """Off unless given; there is no --no- form."""
    return option(bool, help, panel, name)


PATHS = (Path, Path | None)
START, WORK, LOOK = "Start here", "Make and use a model", "Look closer"
ModelPath = argument(Path, "folder of the model, or hf://OWNER/NAME on the Hugging Face Hub", trained)
OwnPath = argument(Path, "folder of the model")
RunName = argument(str, "name of the run")
AnyRun = argument(str, "name of the run; may be left out where there is only one")
Dataset = argument(str, DataConfig.model_fields["dataset"].description or "")
Device = option(str | None, "cpu, cuda, mps ... (default: the best there is)")
Checkpoint = option(str, "step number, 'best', or -1 for the newest")
Json = switch("--json", "one JSON object on stdout")

# how a text is drawn, and where it ends: fields of Sampling, which is imported when a command runs
Temperature = option(float, "0 is greedy", "Sampling")
TopK = option(int, "only the k likeliest bytes; 0 is off", "Sampling")
TopP = option(float, "only the likeliest bytes that make up p; 1 is off", "Sampling")
MinP = option(float, "only bytes p times as likely as the likeliest; 0 is off", "Sampling")
RepetitionPenalty = option(
    float, "above 1, what stands among the last 64 bytes or tokens is less likely; 1 is off", "Sampling"
)
MaxBytes = option(int, "bytes to write at most", "Sampling")
Seed = option(int, "same seed, same text", "Sampling")
DisableLatent = switch("--disable-latent", "skip the latent blocks", "Model")

MODEL = Options(
    [ModelConfig, GPTConfig],
    {
        "Width": ["dim", "mlp_ratio", "next_tokens", "att_q_heads", "att_kv_heads"],
        "Lookup, for every byte": ["ngram_max", "ngram_rows", "ngram_dim"],
        "Local blocks, on every byte": ["fb_num_blocks", "fb_att_window_size"],
        "Latent blocks, on routed bytes": [
            "latent_num_blocks",
            "latent_att_window_size",
            "latent_capacity_factor",
            "router",
        ],
        "Of a gpt alone": ["num_blocks", "head_dim", "vocab_size", "max_context"],
    },
    settable=True,
)
DATA = Options(
    [DataConfig],
    {
        "Data": [
            "column_name",
            "format",
            "loss_on",
            "exclude_words",
            "document_separator",
            "csv_separator",
            "train_file",
            "validation_file",
            "train_split",
            "validation_split",
            "validation_size",
            "streaming",
        ]
    },
)
TRAINING = Options(
    [TrainConfig],
    {
        "Length": ["epochs", "max_steps", "max_minutes", "max_flops"],
        "Batch": ["context_len", "batch_size", "grad_accumulation_steps", "seed"],
        "Optimizer": [
            "optimizer",
            "learning_rate",
            "schedule",
            "warmup_steps",
            "weight_decay",
            "dropout",
        ],
        "Checkpoints and what is shown": [
            "checkpoint_interval",
            "keep_last",
            "validation_interval",
            "sample_interval",
            "tracker",
        ],
        "Machine": ["precision", "attention_backend"],
    },
    settable=True,
)
