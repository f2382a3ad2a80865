"""Pico's command line: `python picolm.py --help`, and `--help` after each command.

stdout is the product, stderr all else. A command parses, calls pico and shows; torch is imported when one runs.
"""

import sys

from pico.app import process

if __name__ == "__main__":  # before the slow imports: Ctrl-C among them is no traceback
    process.guard()

import json
from pathlib import Path
from typing import Annotated

import typer

from pico import __version__
from pico.app import commands
from pico.app.flags import (
    DATA,
    LOOK,
    MODEL,
    START,
    TRAINING,
    WORK,
    AnyRun,
    Checkpoint,
    Dataset,
    Device,
    DisableLatent,
    Json,
    MaxBytes,
    MinP,
    ModelPath,
    OwnPath,
    RepetitionPenalty,
    RunName,
    Seed,
    Temperature,
    TopK,
    TopP,
    argument,
    flags,
    option,
    switch,
    trained,
)
from pico.app.samples import argument_bytes, read_prompt, write_objects, write_samples
from pico.app.terminal import check_writable, print_json, print_results, run_app
from pico.base import hints
from pico.base.config import DataConfig, TrainConfig
from pico.base.errors import PicoError
from pico.base.log import log
from pico.base.presets import PRESETS, preset
from pico.base.shapes import GPTConfig, check_routes

app = typer.Typer(
    help="Pico: a byte-level language model that learns which bytes deserve deep thought.",
    epilog=f"Start with: {hints.command('demo')}",
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


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
    max_minutes: option(float, "training time", None, "--minutes") = 3.0,
):
    """Make a tiny model, train it on built-in stories and read its text, all in a few minutes on a laptop."""
    from pico.app.demo import run_demo

    raise typer.Exit(run_demo(path, max_minutes))


@app.command(rich_help_panel=WORK)
@flags(model=MODEL)
def init(
    path: OwnPath,
    model: dict,
    preset_name: option(
        str, f"shape to start from: {', '.join(PRESETS)}; the defaults shown are those of xs", None, "--preset"
    ) = "xs",
    source: option(
        Path | None,
        "begin with shape and weights of a trained model: its folder, a run's, or hf://OWNER/NAME",
        None,
        "--from",
        parser=trained,
    ) = None,
    tokenizer: option(
        str | None, "for a model of tokens: a tokenizer.json, or the name of a model on the Hub that has one"
    ) = None,
):
    """Make a model: write its shape to PATH/model.json, and show its size and cost."""
    if source and (preset_name != "xs" or tokenizer is not None):
        raise PicoError("--from takes shape and tokenizer of the other model: leave out --preset and --tokenizer")
    from pico.app.tables import model_table
    from pico.base.recipes import RECIPES
    from pico.model.cost import model_facts
    from pico.runs.folder import check_tokens, create, read_config, with_tokenizer

    if source:
        from pico.runs.derive import derive

        weights, config = derive(source, path, **model).parent, read_config(path)
        facts, dataset = model_facts(config), "my-text.txt"
    else:
        file, config = None, preset(preset_name, **model)
        if tokenizer is not None:
            from pico.data import bpe

            config = check_tokens(config)
            file = bpe.find_tokenizer(tokenizer)
            config = with_tokenizer(config, bpe.read_tokenizer(file), "vocab_size" in model)
        facts, dataset = model_facts(config), "stories"
        recipe = RECIPES[preset_name](config) if preset_name in RECIPES else None
        create(path, config, file, recipe)
    print_results(model_table(config, facts))
    if source:
        log(f"\nits runs start from the weights in {weights}")
    if isinstance(config, GPTConfig) and config.unit == "token" and not config.tokenizer_sha256:
        make = hints.command("tokenizer", dataset, "tokenizer.json", "--vocab-size", config.vocab_size)
        log(f"\nto train, it needs a tokenizer: {make}; then the model anew, with --tokenizer")
        return
    log(f"\nnext: {hints.command('train', path, 'my-run', dataset, '--max-minutes', 3)}")


@app.command(rich_help_panel=WORK)
@flags(data=DATA, training=TRAINING)
def train(
    path: OwnPath,
    run: RunName,
    dataset: Dataset,
    data: dict,
    training: dict,
    resume: switch("--resume", "continue the run's newest valid checkpoint") = False,
    base_weights: option(str | None, "run whose weights to begin with (default: PATH/pretrained)") = None,
    device: Device = None,
    quiet: switch("--quiet", "say nothing but warnings") = False,
):
    """Train the model at PATH on DATASET into PATH/RUN.
    Settings that are not given are those of PATH/recipe.json, or with --resume those of the run.
    """
    from pico.runs.folder import read_config, read_recipe, read_record, run_folder

    defaults = {"context_len": read_config(path).context_len, **read_recipe(path)}
    if resume:
        before = read_record(run_folder(path, run))
        training, data = {**before.get("train", {}), **training}, {**before.get("data", {}), **data}
    config = TrainConfig.build(**{**defaults, **training})
    source = DataConfig.build(**{**data, "dataset": dataset})
    from pico.train.loop import train as start

    summary = start(path, run, source, config, resume, base_weights, quiet, device)
    raise typer.Exit(summary.exit_code)


@app.command(rich_help_panel=WORK)
def run(
    path: ModelPath,
    run: AnyRun = "",
    checkpoint: Checkpoint = "-1",
    prompt: option(str | None, "text to continue; - reads stdin", "Prompt") = None,
    prompt_file: option(Path | None, "file to continue, any bytes", "Prompt") = None,
    interactive: switch("--interactive", "type prompts and read on; settings change in between", "Prompt") = False,
    temperature: Temperature = 0.8,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    repetition_penalty: RepetitionPenalty = 1.0,
    max_bytes: MaxBytes = 512,
    num_samples: option(int, "texts, written as one batch", "Sampling") = 1,
    seed: Seed = 0,
    stop: option(
        list[str] | None,
        r"end a text before it comes to this one; may be given again; \n and \t may be spelled out",
        "Sampling",
    ) = None,
    speculative: option(
        bool, "draft several bytes and check them at once; the text is as likely as without", "Model"
    ) = True,
    disable_latent: DisableLatent = False,
    mix_online: switch(
        "--mix-online", "draw from a mixture with n-grams of the text so far, no drafts", "Model"
    ) = False,
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
    if interactive and (prompt is not None or prompt_file or as_json or stats or num_samples > 1):
        raise PicoError(
            "--interactive asks for one prompt after the other: leave out --prompt, --prompt-file, --num-samples, "
            "--json and --stats"
        )
    start = b"" if interactive else read_prompt(prompt, prompt_file)
    from pico import generate, load
    from pico.base.device import pick_device
    from pico.runs.folder import read_config

    routing = dict(disable_latent=disable_latent, show_router_decisions=show_router_decisions)
    check_routes(read_config(path), **routing)

    from pico.decode.sampling import Sampling

    sampling = Sampling.build(
        max_bytes=max_bytes,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        num_samples=num_samples,
        stop=[argument_bytes(text.replace("\\n", "\n").replace("\\t", "\t")) for text in stop or ()],
    )
    model = load(path, run, checkpoint, device=pick_device(device))
    options = dict(speculative=speculative, disable_latent=disable_latent, mix_online=mix_online)
    if interactive:
        from pico.app.interactive import interact

        return interact(model, sampling, show_router_decisions, **options)
    generation = generate(model, start, sampling, echo=True, **options)
    if as_json:
        write_objects(generation, num_samples)
    else:
        write_samples(generation, num_samples, show_router_decisions)
    if stats:
        log(json.dumps(generation.stats))


@app.command(name="eval", rich_help_panel=LOOK)
@flags(data=DATA)
def evaluate(
    path: ModelPath,
    run: RunName,
    dataset: argument(str | None, "text to score; may be left out with --tasks") = None,
    *,
    data: dict,
    checkpoint: Checkpoint = "-1",
    context_len: option(int | None, "bytes, or tokens, that the model may look back (default: as trained)") = None,
    max_bytes: option(int | None, "score only the first so many bytes (default: all)") = None,
    full: switch("--full", "also: routed by other rules, and compressors on the same bytes") = False,
    tasks: option(
        str | None, "spelling, cute, utf8, noise, and lm-eval's, as a,b; NAME=FILE has its questions in a file", "Tasks"
    ) = None,
    tasks_folder: option(Path | None, "folder of such files, NAME.jsonl: no network is needed", "Tasks") = None,
    limit: option(int | None, "so many questions of each part of a task (default: all, or enough)", "Tasks") = None,
    chat: switch("--apply-chat-template", "ask lm-eval's questions in a conversation", "Tasks") = False,
    mix_online: switch("--mix-online", "also: mixed with n-grams of each document so far") = False,
    report: option(Path | None, "write a page with plots and every byte's routing; implies --full") = None,
    device: Device = None,
    as_json: Json = False,
):
    """Causal bits per byte of a run's model on a dataset's validation part, or on all of it where it has none.

    With --tasks also, or only, questions with known answers and what else is in the table of pico/evaluate/tasks.py.
    """
    if dataset is None and (tasks is None or data or full or mix_online or report or max_bytes):
        raise PicoError("nothing to score: give a DATASET, or --tasks without the flags that need a text")
    if tasks is None and (tasks_folder or limit or chat):
        raise PicoError("--tasks-folder, --limit and --apply-chat-template are of tasks: name some with --tasks")
    source = None if dataset is None else DataConfig.build(**{**data, "dataset": dataset})
    if report:
        check_writable(report, "--report")
    from rich.console import Console

    from pico.evaluate.analysis import evaluate_run
    from pico.evaluate.opened import open_run
    from pico.evaluate.tables import report_table, tasks_table, write_page
    from pico.evaluate.tasks import choose_tasks, run_tasks

    def tell(reading) -> None:
        log("\n".join(reading.lines() + reading.warnings))

    result, examples, found = {}, [], {}
    try:
        with Console(stderr=True).status("scoring") as status:
            chosen = None if tasks is None else choose_tasks(tasks, tasks_folder, source, limit, status.update)
            if source is not None:
                options: dict = dict(full=bool(full or report), status=status.update, tell=tell, mix_online=mix_online)
                given = path, run, source, checkpoint, context_len, max_bytes, device
                result, examples = evaluate_run(*given, **options)
            if chosen is not None:
                opened = open_run(path, run, checkpoint, context_len, device)
                result["tasks"] = found = run_tasks(opened, chosen, max_bytes, status.update, chat)
        if report:
            write_page(report, result, examples, hints.command(*sys.argv[1:]))
            log(f"wrote {report}")
    finally:  # a task that cannot be asked, or a page that cannot be written, takes no figures with it
        if result and as_json:
            print_json(result)
        elif result:
            scores = [report_table(result)] if "bits_per_byte" in result else []
            print_results(*scores, *([tasks_table(found)] if found else []))


@app.command(rich_help_panel=LOOK)
def info(path: ModelPath, run: AnyRun = "", as_json: Json = False):
    """Size and cost of a model, and its runs."""
    from pico.app.tables import model_table, runs_table
    from pico.model.cost import model_facts
    from pico.runs.folder import read_config, run_folder, runs
    from pico.runs.metrics import run_facts

    config = read_config(path)
    names = [run_folder(path, run).name] if run else runs(path)
    facts = {**model_facts(config), "config": config.model_dump(), "runs": [run_facts(path, name) for name in names]}
    if as_json:
        print_json(facts)
        return
    print_results(model_table(config, facts), *([runs_table(facts["runs"])] if names else []))


app.add_typer(commands.app)


def main(arguments: list[str] | None = None) -> int:
    """Runs a command and returns its exit code."""
    return run_app(app, (sys.argv[1:] if arguments is None else arguments) or ["--help"])


if __name__ == "__main__":
    process.leave(main())
