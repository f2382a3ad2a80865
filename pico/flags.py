"""Command-line options made from the fields of a config, so that names, defaults and help cannot drift apart.

    @app.command()
    @flags(model=options(ModelConfig, {"Width": "dim next_tokens", ...}))
    def init(path: Path, model: dict): ...

gives `init` one option per named field; `model` holds those that were typed. Bounds are left to the config, which
reports every bad value at once.
"""

import inspect
from typing import Annotated, Literal, get_args, get_origin

import typer

from pico.config import Config


def options(config: type[Config], panels: dict[str, str], prefix: str = "") -> dict[str, inspect.Parameter]:
    """{field: typer option} of the fields named in {panel: "field field"}, in that order.

    A field already named after the prefix, or written with a leading `=`, keeps its own name.
    """
    made = {}
    for panel, names in panels.items():
        for name in names.split():
            flag = name[1:] if name[0] == "=" else prefix + name
            field = config.model_fields[name.removeprefix("=")]
            kind = plain(field.annotation)
            help = field.description
            if get_origin(kind) is Literal:  # the config says what it expected; typer's way would widen the help
                help, kind = f"{help}: {', '.join(get_args(kind))}", str
            name_of = f"--{flag.replace('_', '-')}"  # a switch that is off by default has only its positive form
            declared = [name_of if not field.default else f"{name_of}/--no{name_of[1:]}"] if kind is bool else []
            option = typer.Option(*declared, help=help, rich_help_panel=panel)
            made[name.removeprefix("=")] = inspect.Parameter(
                flag, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=Annotated[kind | None, option]
            )
    return made


def plain(annotation):
    """The type to parse: without `| None` and without pydantic's bounds."""
    inner = [a for a in get_args(annotation) if a is not type(None)] if type(None) in get_args(annotation) else []
    annotation = inner[0] if inner else annotation
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def flags(**groups: dict[str, inspect.Parameter]):
    """Replaces each parameter `group` of a command by its options; the command receives the fields that were typed."""

    def decorate(function):
        def command(ctx: typer.Context, **values):
            typed = {name for name in values if ctx.get_parameter_source(name).name != "DEFAULT"}
            for group, made in groups.items():
                every = {field: (p.name, values.pop(p.name)) for field, p in made.items()}
                values[group] = {field: value for field, (name, value) in every.items() if name in typed}
            return function(**values)

        own = [p for p in inspect.signature(function).parameters.values() if p.name not in groups]
        context = inspect.Parameter("ctx", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
        made = [p for group in groups.values() for p in group.values()]
        keyword = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
        command.__signature__ = inspect.Signature([context, *keyword, *made])
        command.__name__, command.__doc__ = function.__name__, function.__doc__
        return command

    return decorate
