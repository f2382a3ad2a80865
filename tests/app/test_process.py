"""Around a command, in real processes: Ctrl-C at any moment, standard streams that are full, closed or broken."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import picolm

ROOT = Path(__file__).parents[2]
SMALL = "--preset tiny --dim 16 --latent-num-blocks 1 --fb-num-blocks 1 --next-tokens 2 --ngram-rows 64"
TRAIN = "--context-len 32 --batch-size 2 --max-steps 2 --device cpu --quiet"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name == "nt", reason="signals and /dev are Unix's")]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    (home / "text.txt").write_text("the cat sat on the mat; " * 40)
    assert picolm.main(["init", f"{home}/m", *SMALL.split()]) == 0
    assert picolm.main(["train", f"{home}/m", "r", f"{home}/text.txt", *TRAIN.split()]) == 0
    return home


def shell(home, line: str) -> subprocess.CompletedProcess:
    """A line for bash, in which `pico` is our command."""
    script = f'pico() {{ {sys.executable} {ROOT / "picolm.py"} "$@"; }}\n{line}'
    return subprocess.run(["bash", "-c", script], cwd=home, env=ENVIRONMENT, capture_output=True, text=True)


COMMANDS = {
    "--help": "",
    "train --help": "",
    "info m --json": '"parameters"',
    "info m": "parameters",
    "run m r --max-bytes 20 --device cpu": "",
    "eval m r text.txt --max-bytes 100 --device cpu --json": '"bits_per_byte"',
    "eval m r text.txt --max-bytes 100 --device cpu": "bits per byte",
    "bench optimizer --seconds 0.1 --json --dim 16 --ngram-rows 64 --device cpu": '"ms_per_step"',
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_disk_behind_stdout_is_one_line_and_the_result_is_not_lost(home, command):
    done = shell(home, f"pico {command} > /dev/full")
    *result, last = done.stderr.splitlines()
    assert done.returncode == 2 and last == "error: cannot write to stdout: No space left on device"
    assert COMMANDS[command] in "\n".join(result) and "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["--help", "info m", "run m r --max-bytes 20 --device cpu"])
def test_a_closed_stdout_is_one_line_and_a_broken_pipe_none(home, command):
    done = shell(home, f"pico {command} >&-")
    assert done.returncode == 2 and done.stderr.splitlines()[-1] == "error: cannot write to stdout: Bad file descriptor"
    done = shell(home, f"pico {command} | true; echo ${{PIPESTATUS[0]}}")
    assert (done.stdout, done.stderr) == ("141\n", "")


@pytest.mark.parametrize("away", ["2>&-", "2>/dev/full"])
def test_what_stderr_cannot_take_changes_nothing(home, away):
    done = shell(home, f"pico info nowhere {away}; echo $?; pico info m {away}")
    code, *table = done.stdout.splitlines()
    assert code == "2" and "parameters" in "".join(table) and "error" not in done.stdout
    run = f"stderr{len(away)}"
    done = shell(home, f"pico train m {run} text.txt {TRAIN.removesuffix('--quiet')} {away} >&-")
    assert done.returncode == 0 and (home / "m" / run / "00000002").is_dir()


AT = """import os, runpy, signal, sys
moment, *sys.argv = sys.argv[1:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
left = [1]
def interrupt(event, what):
    if event == "import" and what[0] == moment or event == "open" and str(what[0]).endswith(moment):
        left and left.pop() and os.kill(os.getpid(), signal.SIGINT)
sys.addaudithook(interrupt)
runpy.run_path(sys.argv[0], run_name="__main__")
"""
INTERRUPTED = {  # at the import of a module, or when a file is opened
    "train m {run} text.txt --max-steps 9 --device cpu": "typer torch numpy torch.nn accelerate /metrics.jsonl",
    "export m r {run}": "pico.app.flags numpy safetensors /model.json",
    "init {run}": "rich torch",
    "info m": "typer.main /metrics.jsonl",
    "bench train --device cpu": "torch pico.train.optimizers",
    "run m r --device cpu": "pico.model.pico /model.safetensors",
}


@pytest.mark.parametrize("command, moment", [(c, moment) for c, them in INTERRUPTED.items() for moment in them.split()])
def test_ctrl_c_is_130_without_a_traceback(home, command, moment):
    words = command.format(run=moment.replace(".", "-").strip("/")).split()
    line = [sys.executable, "-c", AT, moment, str(ROOT / "picolm.py"), *words]
    done = subprocess.run(line, cwd=home, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stderr and "Error" not in done.stderr, done.stderr


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="Windows has no such signal")
def test_a_training_that_only_starts_is_not_ended_by_sigusr1(home):
    words = ["torch", str(ROOT / "picolm.py"), "train", "m", "asked", "text.txt", *TRAIN.split()]
    line = [sys.executable, "-c", AT.replace("SIGINT", "SIGUSR1"), *words]
    done = subprocess.run(line, cwd=home, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and (home / "m" / "asked" / "00000002").is_dir(), done.stderr


def test_one_of_several_processes_that_ends_because_another_failed_returns_its_code_and_leaves_at_once():
    code = """if True:
        import atexit, sys
        from pico.app import process
        from pico.app.terminal import run_app
        def elsewhere(*_, **__): raise SystemExit(2)
        atexit.register(print, "the interpreter ended step by step")
        code = run_app(elsewhere, ["train"])
        print("returned", code)
        process.leave(code)"""
    alone = {name: value for name, value in os.environ.items() if name != "LOCAL_RANK"}
    one = subprocess.run([sys.executable, "-c", code], env=alone, capture_output=True, text=True, cwd=ROOT)
    several = subprocess.run(
        [sys.executable, "-c", code], env={**alone, "LOCAL_RANK": "1"}, capture_output=True, text=True, cwd=ROOT
    )
    assert (one.returncode, several.returncode) == (2, 2)
    assert one.stdout == "returned 2\nthe interpreter ended step by step\n" and several.stdout == "returned 2\n"
