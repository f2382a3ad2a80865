"""`pip install .` gives the command `picolm` and the package `pico`, whole, in any folder."""

import os
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import distributions
from pathlib import Path

import pytest

from pico import __version__

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with what the wheel holds, which is all that pip would put there except its dependencies."""
    made, target = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("site")
    build = [sys.executable, "-c", f"from hatchling.build import build_wheel; build_wheel({str(made)!r})"]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = made.iterdir()
    assert wheel.name == f"picolm-{__version__}-py3-none-any.whl"
    zipfile.ZipFile(wheel).extractall(target)
    return target


def python(installed, folder, *words):
    environment = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    environment.pop("UV_RUN_RECURSION_DEPTH", None)  # the tests may be run by uv, this command is not
    line = [sys.executable, *words]
    return subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_it_holds_every_file_of_the_package_and_nothing_else(installed):
    tracked = subprocess.run(["git", "ls-files", "pico", "picolm.py"], cwd=ROOT, capture_output=True, text=True)
    files = {p.relative_to(installed).as_posix() for p in installed.rglob("*") if p.is_file()}
    here = {f for f in tracked.stdout.split() if (ROOT / f).is_file()} or {"pico/page.html", "pico/py.typed"}
    assert here <= files
    assert all(f.startswith(("pico/", "picolm.py", "picolm-")) for f in files)


@pytest.mark.slow
def test_the_command_runs_in_another_folder(installed, tmp_path):
    (metadata,) = distributions(name="picolm", path=[str(installed)])
    (entry,) = metadata.entry_points.select(group="console_scripts")
    assert entry.name == "picolm" and metadata.version == __version__
    assert shutil.copy(ROOT / "README.md", tmp_path / "text.txt")
    script = tmp_path / "picolm"  # as an installer writes it
    script.write_text(f"import sys\nfrom {entry.module} import {entry.attr}\nsys.exit({entry.attr}())\n")
    assert python(installed, tmp_path, script, "--version").stdout == f"picolm {__version__}\n"
    line = "init m --preset tiny --dim 16 --latent-num-blocks 1 --fb-num-blocks 1 --ngram-rows 64"
    done = python(installed, tmp_path, script, *line.split())
    assert done.returncode == 0 and "next: picolm train m my-run" in done.stderr
    line = "train m my-run text.txt --max-steps 2 --context-len 32 --batch-size 2 --device cpu"
    done = python(installed, tmp_path, script, *line.split())
    assert done.returncode == 0 and "next: picolm run m my-run --prompt" in done.stderr
    line = "eval m my-run text.txt --max-bytes 99 --device cpu --report page.html"
    done = python(installed, tmp_path, "-m", "pico", *line.split())
    assert done.returncode == 0 and "<html" in (tmp_path / "page.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_pico_is_imported_from_anywhere(installed, tmp_path):
    done = python(installed, tmp_path, "-c", "import pico; print(pico.__file__, pico.preset('tiny').dim)")
    assert done.stdout.startswith(str(installed)), done.stderr
