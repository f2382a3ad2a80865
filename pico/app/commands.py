"""Commands that picolm.py adds to its own: chat, compare, atlas, tokenizer, export, bench."""

from pathlib import Path

import typer

from pico.app.flags import (
    DATA,
    LOOK,
    MODEL,
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
    Options,
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
)
from pico.app.samples import argument_bytes
from pico.app.terminal import check_writable, print_json, print_result
from pico.base import hints
from pico.base.config import DataConfig, TrainConfig
from pico.base.errors import PicoError
from pico.base.log import log
from pico.base.presets import PRESETS, preset
from pico.base.shapes import check_routes
from pico.lab.experiment import form

app = typer.Typer()
BENCHED = Options(
    [TrainConfig],
    {"Batch": ["context_len", "batch_size"], "Machine": ["optimizer", "precision", "attention_backend"]},
    settable=True,
)


@app.command(rich_help_panel=LOOK, epilog=f"The keys of an experiment file:\n\n\b\n{form()}")
def compare(
    experiment: argument(Path, "folder with an experiment.json, or a JSON file; there are examples in experiments/"),
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
    from pico.lab.experiment import experiment_name, read_experiment

    file = read_experiment(experiment, dataset, log)
    plan = file.plan(only, seeds)
    name = experiment_name(experiment) + (f"-{Path(dataset).stem}" if dataset is not None else "")
    out = out or Path("models/compare") / name
    if dry_run:
        from pico.lab.estimate import estimate

        text, stopped = estimate(file, out, device, log, plan)
    else:
        from pico.lab.compare import run_experiment

        results, stopped = run_experiment(file, out, device, quiet, log, plan)
    if stopped != "finished":
        log("stopped" if dry_run else "stopped; the same command goes on from here")
        from pico.train.progress import EXIT_CODES

        raise typer.Exit(EXIT_CODES[stopped])
    if dry_run:
        print(text, end="")
        return
    print((out / "compare.md").read_text(encoding="utf-8"), end="")
    log(f"wrote {out}/compare.md, compare.json and compare.png")
    raise typer.Exit(1 if results["failed"] else 0)


@app.command(rich_help_panel=LOOK)
def atlas(
    file: argument(Path, "kinds of bytes and what is tried on each, such as experiments/atlas/atlas.json"),
    data: option(
        list[Path] | None, "folder of the kinds' folders; may be given again; without it nothing is trained"
    ) = None,
    out: option(Path | None, "folder of runs.jsonl, atlas.md and atlas.html (default: that of the file)") = None,
    only: option(str | None, "train only on these kinds, as a,b") = None,
    seeds: option(str | None, "how many seeds, as 2, or which, as 0,3 (default: the file's)") = None,
    dry_run: switch("--dry-run", "train a few steps of each configuration and say how long all will take") = False,
    device: Device = None,
    quiet: switch("--quiet", "say nothing of each training but warnings") = False,
):
    """What does a model find worth thinking about? The same designs on many kinds of bytes, a table and a page.

    Each run that is through is a line of OUT/runs.jsonl; the same command goes on from these lines, in another clone as
    well. Started several times, once per core or GPU, it shares the work.
    """
    from pico.lab.atlas import LINES, estimate_atlas, read_atlas, read_lines, run_atlas
    from pico.lab.atlas_page import write_atlas
    from pico.lab.atlas_table import atlas_markdown, judged
    from pico.train.progress import EXIT_CODES

    file = file / "atlas.json" if file.is_dir() else file
    plan, out = read_atlas(file), out or file.parent
    runs, failed, stopped = plan.runs(only, seeds), {}, "finished"
    if dry_run:
        text, stopped = estimate_atlas(plan, out, data or [], runs, device, log)
        print(text, end="")
    elif data:
        failed, stopped = run_atlas(plan, out, data, runs, device, quiet, log)
    if stopped != "finished":
        log("stopped" if dry_run else "stopped; the same command goes on from here")
        raise typer.Exit(EXIT_CODES[stopped])
    if not dry_run:
        found = judged(plan, read_lines(plan, out / LINES))
        write_atlas(found, out)
        print(atlas_markdown(found), end="")
        log(f"wrote {out}/atlas.md and atlas.html")
    raise typer.Exit(1 if failed else 0)


@app.command(rich_help_panel=WORK)
def chat(
    path: ModelPath,
    run: AnyRun = "",
    checkpoint: Checkpoint = "-1",
    system: option(str | None, "what the model is told first") = None,
    temperature: Temperature = 0.8,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    repetition_penalty: RepetitionPenalty = 1.0,
    max_bytes: MaxBytes = 512,
    seed: Seed = 0,
    disable_latent: DisableLatent = False,
    show_router_decisions: switch(
        "--show-router-decisions", "underline what went through the latent blocks", "Output"
    ) = False,
    device: Device = None,
):
    """Talk to a model that was trained on conversations. /help, once in it, lists what can be changed."""
    from pico import load
    from pico.base.device import pick_device
    from pico.runs.folder import is_chat, read_config, run_folder

    check_routes(read_config(path), disable_latent=disable_latent, show_router_decisions=show_router_decisions)

    from pico.app.chat import converse
    from pico.decode.sampling import Sampling

    sampling = Sampling.build(
        max_bytes=max_bytes,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )
    folder = run_folder(path, run)
    model = load(path, folder.name, checkpoint, device=pick_device(device))
    if not is_chat(folder):
        better = hints.command("run", path, folder.name, "--interactive")
        log(f"{folder} was not trained on conversations, so expect text and no answers: {better} continues texts")
    converse(model, sampling, argument_bytes(system or ""), show_router_decisions, disable_latent=disable_latent)


@app.command(rich_help_panel=WORK)
@flags(data=DATA)
def tokenizer(
    dataset: Dataset,
    out: argument(Path, "file to write, such as tokenizer.json"),
    data: dict,
    vocab_size: option(int, "ids, bytes and control symbols included") = 4096,
):
    """Make the tokenizer of a model of tokens: byte-level BPE, learned from DATASET's training part.

    The same text gives the same file.
    """
    source = DataConfig.build(**{**data, "dataset": dataset})
    if out.exists():
        raise PicoError(f"{out} already exists: choose another file, or remove it first")
    check_writable(out, "OUT")
    from pico.data import bpe

    bpe.check_size(vocab_size)
    from rich.console import Console

    from pico.app.tables import facts_table
    from pico.base.files import write_whole
    from pico.data.open import open_data
    from pico.data.reading import Reading

    reading = Reading()
    training, validation = open_data(source, 0, reading)
    for line in reading.lines() + reading.warnings:
        log(line)
    with Console(stderr=True).status("reading the text") as status:
        made = bpe.train_tokenizer(training.block(0), vocab_size, status.update)
        write_whole(out, made.encode())
        status.update("tokenizing the validation part")
        facts = bpe.tokenizer_facts(bpe.read_tokenizer(out), validation)
    print_result(facts_table(facts))
    if facts["vocabulary"] < vocab_size:
        log(f"the text gives no more than {facts['vocabulary']} ids: no other pair in it occurs twice")
    log(f"\nnext: {hints.command('init', 'models/my-gpt', '--preset', 'gpt-tiny', '--tokenizer', out)}")


@app.command(rich_help_panel=WORK)
def export(
    path: ModelPath,
    run: RunName,
    target: argument(Path, "folder of the model to write"),
    checkpoint: Checkpoint = "best",
    form: option(str, "pico, or hf: a folder that transformers loads without Pico", None, "--format") = "pico",
    push: option(str | None, "and upload it to the Hugging Face Hub, as the model OWNER/NAME") = None,
):
    """Write a trained model to give away: weights and what is known of them, no optimizer state.

    Weights are fp16; those for transformers only where that changes none of them, else fp32.
    """
    if form not in ("pico", "hf"):
        raise PicoError(f"--format {form}: expected pico or hf")
    from pico.runs.export import export_run, folder_size
    from pico.runs.share import check_hub_name, export_for_transformers, push_folder

    if push is not None:
        check_hub_name(push)
    if form == "hf":
        made = export_for_transformers(path, run, target, checkpoint, push)
    else:
        made = export_run(path, run, target, checkpoint)
    log(f"wrote {made}, {folder_size(target) / 1e6:.1f} MB")
    if push is not None:
        log(f"uploaded: {push_folder(target, push)}")
    log(f"next: {hints.command('run', f'hf://{push}' if push else target, run)}")


@app.command(rich_help_panel=LOOK)
@flags(model=MODEL, training=BENCHED)
def bench(
    kind: argument(str, "what to measure: train, generate, long, spelling, attention or optimizer"),
    path: argument(
        Path | None, "generate, long, spelling: folder of a trained model (default: a new one, of the flags)"
    ) = None,
    run: AnyRun = "",
    *,
    model: dict,
    training: dict,
    preset_name: option(str, f"shape to measure: {', '.join(PRESETS)}", None, "--preset") = "tiny",
    seconds: option(float, "how long to measure") = 30.0,
    dataset: option(str, "spelling: the text that the model was trained on") = "stories",
    device: Device = None,
    as_json: Json = False,
):
    """Where the time goes: training, generation, attention or optimizers, with medians and spreads.

    long: does a text of many thousand bytes slow down? spelling: how many written words stand in the training text,
    with latent blocks and without?
    """
    config = preset(preset_name, **model)
    settings = TrainConfig.build(**{"context_len": config.context_len, **training})
    from pico import load
    from pico.base.device import pick_device
    from pico.lab.bench import run_benchmark

    where = pick_device(device)
    trained = load(path, run, device=where) if path else None
    result = run_benchmark(kind, config, where, settings, trained, seconds, dataset)
    if as_json:
        print_json(result)
        return
    from pico.app.tables import facts_table

    print_result(facts_table(result))


@app.command(rich_help_panel=WORK)
def serve(
    path: ModelPath,
    run: AnyRun = "",
    checkpoint: Checkpoint = "-1",
    host: option(str, "address to listen at; 0.0.0.0 is all of this machine's") = "127.0.0.1",
    port: option(int, "port to listen at; 0 takes a free one") = 8000,
    api_key: option(str | None, "answer only who has this key") = None,
    device: Device = None,
):
    """Serve a model: a page to talk to it, and OpenAI's HTTP interface for any client."""
    if not 0 <= port < 2**16:
        raise PicoError(f"--port {port}: expected 0 to 65535")
    if api_key == "":
        raise PicoError("--api-key is empty: give a key, or leave it out")
    from pico import load
    from pico.app.server import serve_model
    from pico.base.device import pick_device
    from pico.runs.folder import is_chat, model_name, run_folder

    model = load(path, run, checkpoint, device=pick_device(device))
    serve_model(model, model_name(path), is_chat(run_folder(path, run)), host, port, api_key)
