"""Pico's command line: `python picolm.py --help`, and `--help` after each command.

stdout is the product, stderr is talk. A command parses, calls pico and shows; torch is imported when one runs.
"""

import sys

from pico import process

if __name__ == "__main__":  # before the slow imports: Ctrl-C among them is no traceback
    process.guard()

import base64
import json
import math
from pathlib import Path
from typing import Annotated

import typer
from typer.exceptions import TyperException

from pico import __version__, hints
from pico.config import LONGEST_PROMPT, PRESETS, DataConfig, ModelConfig, PicoError, TrainConfig, preset
from pico.experiment import form
from pico.flags import flags, options

app = typer.Typer(
    help="Pico: a byte-level language model that learns which bytes deserve deep thought.",
    epilog=f"Start with: {hints.command('demo')}",
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)

MODEL = options(
    ModelConfig,
    {
        "Width": "dim mlp_ratio next_tokens chained_heads att_q_heads att_kv_heads qk_norm embedding_skip",
        "Lookup, for every byte": "ngram_max ngram_rows ngram_dim",
        "Local blocks, on every byte": "fb_num_blocks fb_att_window_size",
        "Latent blocks, on routed bytes": "latent_num_blocks latent_att_window_size latent_capacity_factor router",
    },
)
DATA = options(
    DataConfig,
    {
        "Data": "column_name format =document_separator csv_separator train_file validation_file train_split "
        "validation_split validation_size =streaming"
    },
    prefix="dataset_",
)
TRAINING = options(
    TrainConfig,
    {
        "Length": "epochs max_steps max_minutes max_flops",
        "Batch": "context_len batch_size grad_accumulation_steps seed",
        "Optimizer": "optimizer learning_rate warmup_steps weight_decay ngram_dropout dropout gradient_clip "
        "router_loss_weight",
        "Checkpoints and what is shown": "checkpoint_interval keep_last validation_interval sample_interval tracker "
        "tracker_project_name",
        "Machine": "precision attention_backend compile",
    },
)

BENCHED = options(
    TrainConfig, {"Batch": "context_len batch_size", "Machine": "optimizer precision attention_backend compile"}
)


def path(text: str | Path) -> Path:
    """A path as it was typed; an empty one, mostly an unset variable, would be the current folder."""
    if text == "":
        raise PicoError("'' is no path: give the name of a file or folder ('.' is the current one)")
    return Path(text)


def argument(kind, help: str):
    return Annotated[kind, typer.Argument(help=help, parser=path if kind in PATHS else None)]


def option(kind, help: str, panel: str | None = None, *names: str):
    return Annotated[
        kind, typer.Option(*names, help=help, rich_help_panel=panel, parser=path if kind in PATHS else None)
    ]


def switch(name: str, help: str, panel: str | None = None):
    """Off unless given; there is no --no- form."""
    return option(bool, help, panel, name)


PATHS = (Path, Path | None)
START, WORK, LOOK = "Start here", "Make and use a model", "Look closer"
ModelPath = argument(Path, "folder of the model")
RunName = argument(str, "name of the run")
AnyRun = argument(str, "name of the run; may be left out where there is only one")
Dataset = argument(str, DataConfig.model_fields["dataset"].description)
Device = option(str | None, "cpu, cuda, mps ... (default: the best there is)")
Checkpoint = option(str, "step number, 'best', or -1 for the newest")
Json = switch("--json", "one JSON object on stdout")


def say(text: str = "") -> None:
    """Talk."""
    print(text, file=sys.stderr, flush=True)


def show(renderable, **how) -> None:
    """Product, for people. Where stdout fails, stderr has it: what took an hour to compute is not lost."""
    from rich.console import Console

    try:
        Console(highlight=False).print(renderable, **how)
        sys.stdout.flush()
    except process.StdoutFailed as failure:
        if not failure.quiet:
            Console(highlight=False, stderr=True).print(renderable, **how)
        raise


def show_json(facts: dict) -> None:
    """Product, for programs: one line of strict JSON, where what is not a number is null."""
    from rich.text import Text

    show(Text(json.dumps(finite(facts), allow_nan=False)), soft_wrap=True)


def finite(value):
    """Nested facts with None in the place of infinities and NaN, which JSON does not know."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def version(wanted: bool) -> None:
    if wanted:
        print(f"picolm {__version__}")
        raise typer.Exit


@app.callback()
def root(
    _: Annotated[bool, typer.Option("--version", callback=version, is_eager=True, help="show the version")] = False,
):
    pass


@app.command(rich_help_panel=START)
def demo(
    path: argument(Path, "folder of the model; a new run is added to it") = Path("models/demo"),
    minutes: option(float, "training time") = 3.0,
):
    """Make a tiny model, train it on built-in stories and read its text, all in a few minutes on a laptop."""
    from pico.demo import run_demo

    raise typer.Exit(run_demo(path, minutes))


@app.command(rich_help_panel=WORK)
@flags(model=MODEL)
def init(
    path: ModelPath,
    model: dict,
    preset_name: option(
        str, f"shape to start from: {', '.join(PRESETS)}; the defaults shown are those of xs", None, "--preset"
    ) = "xs",
    source: option(
        Path | None, "begin with shape and weights of a trained model: its folder, or a run's", None, "--from"
    ) = None,
):
    """Make a model: write its shape to PATH/model.json, and show its size and cost."""
    if source and (model or preset_name != "xs"):
        raise PicoError("--from takes the shape of the other model: leave out --preset and the flags of sizes")
    config = preset(preset_name, **model)
    from pico.folder import create, read_config
    from pico.report import model_facts, model_table

    if source:
        from pico.derive import derive

        weights, config = derive(source, path).parent, read_config(path)
        facts, dataset = model_facts(config), "my-text.txt"
    else:
        facts, dataset = model_facts(config), "stories"
        create(path, config)
    show(model_table(config, facts))
    if source:
        say(f"\nits runs start from the weights in {weights}")
    say(f"\nnext: {hints.command('train', path, 'my-run', dataset, '--max-minutes', 3)}")


@app.command(rich_help_panel=WORK)
@flags(data=DATA, training=TRAINING)
def train(
    path: ModelPath,
    run: RunName,
    dataset: Dataset,
    data: dict,
    training: dict,
    resume: switch("--resume", "continue the run's newest valid checkpoint") = False,
    base_weights: option(
        str | None, "start from the weights of a run: its name, its folder or a checkpoint's (default: PATH/pretrained)"
    ) = None,
    device: Device = None,
    quiet: switch("--quiet", "say nothing but warnings") = False,
):
    """Train the model at PATH on DATASET into PATH/RUN.

    With --resume, settings that are not given are those of the run.
    """
    if resume:
        from pico.folder import read_record, run_folder

        before = read_record(run_folder(path, run))
        training, data = {**before.get("train", {}), **training}, {**before.get("data", {}), **data}
    config = TrainConfig.build(**training)
    source = DataConfig.build(**{**data, "dataset": dataset})
    from pico.train import train as start

    summary = start(path, run, source, config, resume, base_weights, quiet, device)
    raise typer.Exit(summary.exit_code)


@app.command(rich_help_panel=WORK)
def run(
    path: ModelPath,
    run: AnyRun = "",
    checkpoint: Checkpoint = "-1",
    prompt: option(str | None, "text to continue; - reads stdin", "Prompt") = None,
    prompt_file: option(Path | None, "file to continue, any bytes", "Prompt") = None,
    temperature: option(float, "0 is greedy", "Sampling") = 0.8,
    top_k: option(int, "only the k likeliest bytes; 0 is off", "Sampling") = 0,
    top_p: option(float, "only the likeliest bytes that make up p; 1 is off", "Sampling") = 1.0,
    min_p: option(float, "only bytes p times as likely as the likeliest; 0 is off", "Sampling") = 0.0,
    max_bytes: option(int, "bytes to write at most", "Sampling") = 512,
    num_samples: option(int, "texts, written as one batch", "Sampling") = 1,
    seed: option(int, "same seed, same text", "Sampling") = 0,
    stop: option(
        list[str] | None,
        r"end a text before it comes to this one; may be given again; \n and \t may be spelled out",
        "Sampling",
    ) = None,
    speculative: option(
        bool, "draft several bytes and check them at once; the text is as likely as without", "Model"
    ) = True,
    disable_latent: switch("--disable-latent", "skip the latent blocks", "Model") = False,
    show_router_decisions: switch(
        "--show-router-decisions", "put _ before what went through the latent blocks", "Output"
    ) = False,
    stats: switch("--stats", "speed and acceptance as a JSON object on stderr", "Output") = False,
    as_json: switch("--json", "a JSON object a line for each text, when all are written", "Output") = False,
    device: Device = None,
):
    """Continue a prompt with the model of a run. stdout holds the prompt and the text, nothing else.

    In a file or a pipe these are the bytes themselves; a terminal gets control characters as their pictures.
    """
    if as_json and show_router_decisions:
        raise PicoError(
            "--json and --show-router-decisions were both given: the JSON says what was routed, drop the latter"
        )
    start = read_prompt(prompt, prompt_file)
    from pico import generate, load
    from pico.machine import pick_device

    model = load(path, run, checkpoint, device=pick_device(device))
    generation = generate(
        model,
        start,
        max_bytes=max_bytes,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        seed=seed,
        num_samples=num_samples,
        stop=[argument_bytes(text.replace("\\n", "\n").replace("\\t", "\t")) for text in stop or ()],
        speculative=speculative,
        disable_latent=disable_latent,
        echo=True,
    )
    if as_json:
        write_objects(generation, num_samples)
    else:
        write_samples(generation, num_samples, show_router_decisions)
    if stats:
        say(json.dumps(generation.stats))


def read_prompt(text: str | None, file: Path | None) -> bytes:
    """The prompt's bytes, wherever they come from."""
    if text is not None and file is not None:
        raise PicoError("--prompt and --prompt-file were both given: choose one")
    most = LONGEST_PROMPT + 1  # enough to see that it is too long, even where there is no end
    if file is not None:
        try:
            with open(file, "rb") as stream:
                return stream.read(most)
        except OSError as error:
            raise PicoError(f"cannot read --prompt-file {file}: {error.strerror}") from None
    if text == "-":
        return sys.stdin.buffer.read(most)
    return argument_bytes(text or "")


def argument_bytes(text: str) -> bytes:
    """The bytes that were typed, also where they are no UTF-8."""
    return text.encode("utf-8", "surrogateescape")


def write_samples(generation, count: int, show_routed: bool) -> None:
    """Writes the first text while it grows, then the others, an empty line between them."""
    from pico.vocab import characters, visible

    later, terminal = [[] for _ in range(count)], sys.stdout.isatty()

    def first():
        for step in generation:
            if step.row == 0:
                yield step
            else:
                later[step.row].append(step)

    def write(text: str, data: bytes) -> None:
        """One of the two: the text for a person, the bytes for whatever reads them."""
        if terminal:
            sys.stdout.write(text)
        else:
            sys.stdout.buffer.write(data)
        sys.stdout.flush()

    if terminal:
        sys.stdout.reconfigure(encoding="utf-8")
    for row in range(count):
        if row:
            write("\n\n", b"\n\n")
            if sys.stderr.isatty():
                say("─" * 40)
        for character, steps in characters(later[row] if row else first()):
            mark = "_" * (show_routed and any(step.routed for step in steps))
            write(mark + visible(character), mark.encode() + bytes(step.byte for step in steps))
    if terminal:
        sys.stdout.write("\n")


def write_objects(generation, count: int) -> None:
    """A JSON object a line for each text: its prompt and itself, what was routed, how it ended, the stats of them all.

    Where prompt or text is no UTF-8, its bytes are beside it in base64.
    """
    rows = [{"prompt": [], "text": []} for _ in range(count)]
    for step in generation:
        rows[step.row]["prompt" if step.prompt else "text"].append(step)
    for row, ended in zip(rows, generation.ended):
        made: dict = {}
        for name, steps in row.items():
            data = bytes(step.byte for step in steps)
            made[name] = data.decode(errors="replace")
            if made[name].encode() != data:
                made[f"{name}_base64"] = base64.b64encode(data).decode()
            made[f"{name}_routed"] = [step.routed for step in steps]
        print(json.dumps(made | {"ended": ended, "stats": generation.stats}))


@app.command(name="eval", rich_help_panel=LOOK)
@flags(data=DATA)
def evaluate(
    path: ModelPath,
    run: RunName,
    dataset: Dataset,
    data: dict,
    checkpoint: Checkpoint = "-1",
    context_len: option(int | None, "bytes the model may look back (default: as trained)") = None,
    max_bytes: option(int | None, "score only the first so many bytes (default: all)") = None,
    full: switch("--full", "also: routed by other rules, and compressors on the same bytes") = False,
    report: option(Path | None, "write a page with plots and every byte's routing; implies --full") = None,
    device: Device = None,
    as_json: Json = False,
):
    """Causal bits per byte of a run's model on a dataset's validation part, or on all of it where it has none."""
    source = DataConfig.build(**{**data, "dataset": dataset})
    if report:
        check_writable(report, "--report")
    from rich.console import Console

    from pico.analysis import evaluate_run
    from pico.analysis_report import report_table, write_page

    def tell(reading) -> None:
        say("\n".join(reading.lines() + reading.warnings))

    with Console(stderr=True).status("scoring") as status:
        result, examples = evaluate_run(
            path, run, source, checkpoint, context_len, max_bytes, device, bool(full or report), status.update, tell
        )
    try:
        if report:
            write_page(report, result, examples)
            say(f"wrote {report}")
    finally:  # a page that cannot be written takes no figures with it
        show_json(result) if as_json else show(report_table(result))


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


@app.command(rich_help_panel=LOOK, epilog=f"The keys of an experiment file:\n\n\b\n{form()}")
def compare(
    experiment: argument(Path, "JSON file; there are examples in benchmarks/"),
    out: option(Path | None, "folder of the runs and results (default: models/compare/NAME)") = None,
    dataset: option(str | None, "train and score on this instead of the file's dataset") = None,
    only: option(str | None, "train only these configurations, as a,b") = None,
    seeds: option(str | None, "how many seeds, as 2, or which, as 0,3 (default: the file's)") = None,
    dry_run: switch("--dry-run", "train a few steps of each configuration and say how long all will take") = False,
    device: Device = None,
    quiet: switch("--quiet", "say nothing of each training but warnings") = False,
):
    """Train several designs on one budget, several seeds each, and write one table and one plot.

    Stopped at any time, the same command goes on where it was. Started several times, once per core or GPU, it shares
    the work: each process trains what no other does, and all end with the same table.
    """
    from pico.experiment import read_experiment

    file = read_experiment(experiment, dataset, say)
    plan = file.plan(only, seeds)
    name = experiment.stem + (f"-{Path(dataset).stem}" if dataset is not None else "")
    out = out or Path("models/compare") / name
    if dry_run:
        from pico.estimate import estimate

        text, stopped = estimate(file, out, device, say, plan)
    else:
        from pico.compare import compare as start

        results, stopped = start(file, out, device, quiet, say, plan)
    if stopped != "finished":
        say("stopped" if dry_run else "stopped; the same command goes on from here")
        from pico.progress import EXIT_CODES

        raise typer.Exit(EXIT_CODES[stopped])
    if dry_run:
        print(text, end="")
        return
    print((out / "compare.md").read_text(encoding="utf-8"), end="")
    say(f"wrote {out}/compare.md, compare.json and compare.png")
    raise typer.Exit(1 if results["failed"] else 0)


@app.command(rich_help_panel=WORK)
def export(
    path: ModelPath,
    run: RunName,
    target: argument(Path, "folder of the model to write"),
    checkpoint: Checkpoint = "best",
):
    """Write a trained model to give away: fp16 weights and what is known of them, no optimizer state."""
    from pico.export import export as write
    from pico.export import size

    made = write(path, run, target, checkpoint)
    say(f"wrote {made}, {size(target) / 1e6:.1f} MB")
    say(f"next: {hints.command('run', target, run)}")


@app.command(rich_help_panel=LOOK)
def info(path: ModelPath, run: AnyRun = "", as_json: Json = False):
    """Size and cost of a model, and its runs."""
    from pico.folder import read_config, run_folder, runs
    from pico.report import model_facts, model_table, run_facts, runs_table

    config = read_config(path)
    names = [run_folder(path, run).name] if run else runs(path)
    facts = {**model_facts(config), "config": config.model_dump(), "runs": [run_facts(path, name) for name in names]}
    if as_json:
        show_json(facts)
        return
    show(model_table(config, facts))
    if names:
        show("")
        show(runs_table(facts["runs"]))


@app.command(rich_help_panel=LOOK)
@flags(model=MODEL, training=BENCHED)
def bench(
    kind: argument(str, "what to measure: train, generate, attention or optimizer"),
    path: argument(Path | None, "generate: folder of a trained model (default: a new one, of the flags)") = None,
    run: AnyRun = "",
    *,
    model: dict,
    training: dict,
    preset_name: option(str, f"shape to measure: {', '.join(PRESETS)}", None, "--preset") = "tiny",
    seconds: option(float, "how long to measure") = 30.0,
    device: Device = None,
    as_json: Json = False,
):
    """Where the time goes: training, generation, attention or optimizers, with medians and spreads."""
    config, settings = preset(preset_name, **model), TrainConfig.build(**training)
    from pico import load
    from pico.bench import bench as measure
    from pico.machine import pick_device

    where = pick_device(device)
    trained = load(path, run, device=where) if path else None
    result = measure(kind, config, where, settings, trained, seconds)
    if as_json:
        show_json(result)
        return
    from pico.report import facts_table

    show(facts_table(result))


def main(arguments: list[str] | None = None) -> int:
    """Runs a command and returns its exit code. Whatever the user can mend is one line on stderr and code 2."""
    arguments = sys.argv[1:] if arguments is None else arguments
    process.busy = True
    try:
        code = app(arguments or ["--help"], standalone_mode=False) or 0
        sys.stdout.flush()
        return code
    except PicoError as error:
        problem, code = str(error), 2
    except TyperException as error:  # a wrong flag or value
        problem, code = mistyped(error), 2
    except process.StdoutFailed as error:
        if error.quiet:  # what a shell shows of a command that the closed pipe ended
            return 141
        problem, code = str(error), 2
    except OSError as error:  # a full disk, a folder that may not be written
        problem, code = f"{error.filename or 'input or output'}: {error.strerror or error}", 2
    finally:
        process.busy = False
    say(f"error: {' '.join(problem.split())}")
    return code


def mistyped(error: TyperException) -> str:
    """What is wrong with a command line, in the style of all errors."""
    text = error.format_message().removesuffix(".")
    context = getattr(error, "ctx", None)
    words = [context.info_name] if context and context.parent else []
    text = text.replace(". Did you", "; did you")
    return f"{text[0].lower()}{text[1:]} (see {hints.command(*words, '--help')})"


if __name__ == "__main__":
    sys.exit(main())
