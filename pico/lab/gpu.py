"""Everything Pico claims about a GPU, measured in one go in about eight minutes.

    python -m pico.lab.gpu --minutes 8 --out gpu                    all sections, the story model last
    python -m pico.lab.gpu --minutes 2 --out gpu attention micro    only these
    python -m pico.lab.gpu --smoke --out gpu                        tiny shapes, also on a CPU: tries the script itself

Each section is a process of its own with a share of the time, so one that fails, even with a poisoned GPU, does not
stop the next. Files in the folder, each written as soon as there is something to write:

    report.json                 {section: {figure: ...}}; times in ms are medians with the 10th and 90th percentile
    log.txt                     all that was said
    profile.txt                 the kernels that took longest in a training step of s and m
    story.tar.gz.0, .1 ...      a story model, trained for three minutes; story.txt says how to join the pieces
"""

import argparse
import faulthandler
import multiprocessing
import os
import signal
import sys
import time
import traceback
from pathlib import Path

import torch

from pico.lab import gpu_micro, gpu_runs
from pico.lab.gpu_clock import Section, explain, read_report, update_report

SECTIONS = {  # in order: what is measured, and its share of the seconds
    "machine": (gpu_micro.machine, 5),
    "kernels": (gpu_micro.kernels, 35),
    "train_s": (gpu_runs.train_s, 55),
    "train_m": (gpu_runs.train_m, 65),
    "attention": (gpu_micro.attention_speed, 35),
    "generation": (gpu_runs.generation, 55),
    "train_tiny": (gpu_runs.train_tiny, 25),
    "micro": (gpu_micro.micro, 25),
    "leaves": (gpu_micro.leaves, 10),
    "story": (gpu_runs.story_model, 200),  # three minutes of training, and what is around it
}
GRACE = 5.0  # seconds that a section may be late before its process is ended
BARS = {  # what is asked of one H100 or H200: must, aim
    "kernel checks failed": (0, 0),
    "attention over compiled flex, least": (1.0, 1.5),
    "m, fraction of the bf16 peak": (0.25, 0.40),
    "s, fraction of the bf16 peak": (0.12, 0.25),
    "s, SOAP's share of a step, at most": (0.30, 0.15),
    "m, SOAP's share of a step, at most": (0.30, 0.15),
    "bytes per second of s, batch 64": (50_000, 200_000),
    "speculation over plain, batch 1": (2.0, 3.0),
    "bits per byte of the story model, at most": (0.72, 0.60),
}


def measure_gpu() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)} (default: all)")
    parser.add_argument("--out", type=Path, default=Path("gpu"), help="folder for the files (default gpu)")
    parser.add_argument("--minutes", type=float, default=8.0, help="for everything (default 8)")
    parser.add_argument("--smoke", action="store_true", help="tiny shapes, on a CPU too, to try the script itself")
    options = parser.parse_args()
    if unknown := set(options.sections) - set(SECTIONS):
        parser.error(f"unknown section {', '.join(sorted(unknown))}: expected some of {', '.join(SECTIONS)}")
    options.out.mkdir(parents=True, exist_ok=True)
    names = [name for name in SECTIONS if name in options.sections or not options.sections]
    if "machine" not in [*names, *read_report(options.out)]:
        names.insert(0, "machine")  # the rest is held against its limits
    end = time.monotonic() + 60 * options.minutes
    while names:
        seconds = 600.0 if options.smoke else time_share(names, end - time.monotonic() - GRACE)
        name = names.pop(0)
        run_section(name, options.out, seconds, options.smoke)
        if name == "machine" and "error" in read_report(options.out)[name]:
            break
    print(report_text(read_report(options.out)))
    return 0


def time_share(sections: list[str], seconds: float) -> float:
    """What the first section may take of so many seconds for all of them: its part, or what the others can spare."""
    first, *later = (SECTIONS[name][1] for name in sections)
    return max(0.0, seconds * first / (first + sum(later)), seconds - sum(later))


def run_section(name: str, folder: Path, seconds: float, smoke: bool) -> None:
    """Measures one section in a process of its own, which is ended when it is late."""
    began = time.monotonic()
    limit = began + seconds
    # A fork has the modules already: importing them anew would take seconds of every section. Nothing before it may ask
    # for the GPU, as importing torch._dynamo does, for its children could not use it then.
    process = multiprocessing.get_context("fork").Process(target=child, args=(name, folder, limit, smoke))
    process.start()
    process.join(max(0.0, limit + GRACE - began))
    error = None
    if process.is_alive():
        error = "ended: no time left"
    elif process.exitcode:
        error = f"its process ended with {process.exitcode}"
    if process.exitcode != 0:
        assert process.pid is not None, "it was started"
        try:
            os.killpg(process.pid, signal.SIGKILL)  # with the processes that it started
        except ProcessLookupError:
            process.kill()
    process.join()
    ended = {"seconds": round(time.monotonic() - began, 1)}
    figures = read_report(folder).get(name, {})
    update_report(folder, name, ended | ({"error": error} if error and "error" not in figures else {}))
    failed = f"; {read_report(folder)[name].get('error', '')}" if error else ""
    print(f"{name}: {ended['seconds']} s{failed}", flush=True)


def child(name: str, folder: Path, limit: float, smoke: bool) -> None:
    """The process of one section: all that it says goes to log.txt."""
    os.setsid()
    log = (folder / "log.txt").open("a", buffering=1)
    sys.stdout = sys.stderr = log
    for stream in (1, 2):  # what is written beside Python, and by processes of its own
        os.dup2(log.fileno(), stream)
    faulthandler.enable(log)
    print(f"--- {name}", flush=True)
    if smoke:
        os.environ["TORCHDYNAMO_DISABLE"] = "1"  # a compilation takes a CPU minutes
    try:
        if not (torch.cuda.is_available() or smoke):
            raise RuntimeError("there is no CUDA GPU here; --smoke tries the script on a CPU")
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        SECTIONS[name][0](Section(name, folder, smoke, limit, device))
    except BaseException as error:
        traceback.print_exc()
        update_report(folder, name, {"error": explain(error)})
        os._exit(1)
    os._exit(0)  # nothing that waits for a GPU may hold it


# --- the table at the end ---------------------------------------------------------------------------------------------


def report_text(report: dict) -> str:
    """The bars and the main figures, in less than 12,000 characters."""
    lines = [f"{'bar':45} {'must':>10} {'aim':>10} {'measured':>10}"]
    found = measured(report)
    lines += [f"{bar:45} {must:>10} {aim:>10} {found[bar]!s:>10}" for bar, (must, aim) in BARS.items()]
    for section, figures in report.items():
        lines.append(f"\n{section}")
        lines += [f"  {name}: {brief(value)}"[:300] for name, value in figures.items() if name != "sample"]
    return "\n".join(lines)[:11_500]


def brief(value) -> str:
    """A figure in a few characters: of a time the median alone."""
    if not isinstance(value, dict):
        return str(value)
    return ", ".join(
        f"{name} {each.get('ms', each) if isinstance(each, dict) else each}"
        for name, each in value.items()
        if name not in ("p10", "p90", "top_ms", "slowest_and_fastest")
    )


def measured(report: dict) -> dict:
    """The figure of each bar, None where there is none."""
    figures: dict = dict.fromkeys(BARS)

    def take(bar: str, pick, *values) -> None:
        values = [value for value in values if value is not None]
        figures[bar] = pick(values) if values else None

    kernels = report.get("kernels", {})
    take("kernel checks failed", max, len(kernels["failed"]) if "failed" in kernels else None)
    entries = [entry for entry in report.get("attention", {}).values() if isinstance(entry, dict)]
    take("attention over compiled flex, least", min, *(entry.get("flex_over_triton") for entry in entries))
    for name in ("m", "s"):
        runs = {run: entry for run, entry in report.get(f"train_{name}", {}).items() if isinstance(entry, dict)}
        soap = [entry for run, entry in runs.items() if run.endswith(", soap")]
        take(f"{name}, fraction of the bf16 peak", max, *(entry.get("fraction_of_peak") for entry in soap))
        take(f"{name}, SOAP's share of a step, at most", max, report.get(f"train_{name}", {}).get("soap_share"))
    speeds = {
        name: entry["bytes_per_second"]
        for name, entry in report.get("generation", {}).items()
        if isinstance(entry, dict) and "bytes_per_second" in entry
    }
    fast = [speed for name, speed in speeds.items() if name.startswith("batch 64")]
    take("bytes per second of s, batch 64", max, *fast)
    speculative, plain = (speeds.get(f"batch 1, graph, {way}") for way in ("speculative", "plain"))
    gain = round(speculative / plain, 2) if speculative and plain else None
    take("speculation over plain, batch 1", max, gain)
    bpb = report.get("story", {}).get("validation_bpb")
    take("bits per byte of the story model, at most", min, round(bpb, 3) if bpb is not None else None)
    return figures


if __name__ == "__main__":
    sys.exit(measure_gpu())
