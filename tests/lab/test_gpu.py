"""The GPU measurements, tried on a CPU with tiny shapes, and with nothing installed except what a GPU machine has."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from pico import load
from pico.lab import gpu
from pico.lab.gpu_clock import read_report

ROOT = Path(__file__).parents[2]
SURE = "torch triton numpy accelerate safetensors einops pydantic typer rich"
HIDE = """
import sys
from importlib.machinery import PathFinder


class Sure:
    '''Finds nothing of what is hidden.'''

    @staticmethod
    def find_spec(name, path=None, target=None):
        return None if name.partition(".")[0] in HIDDEN else PathFinder.find_spec(name, path, target)

    find_distributions = PathFinder.find_distributions
    invalidate_caches = PathFinder.invalidate_caches


sys.meta_path[sys.meta_path.index(PathFinder)] = Sure
"""


def named(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement)[0].lower().replace("_", "-")


def needed(names: set[str]) -> set[str]:
    """The packages of these names, and all that they cannot do without."""
    found, open_ = set(), {named(name) for name in names}
    while open_:
        name = open_.pop()
        found.add(name)
        try:
            requires = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        open_ |= {named(each) for each in requires if "extra ==" not in each} - found
    return found


@pytest.mark.slow
def test_all_of_it_runs_on_a_cpu_with_few_packages(tmp_path):
    sure, packages = needed(set(SURE.split())), importlib.metadata.packages_distributions()
    hidden = {top for top, names in packages.items() if not {named(name) for name in names} & sure}
    assert {"scipy", "matplotlib", "threadpoolctl", "pytest"} <= hidden and "torch" not in hidden
    (tmp_path / "sitecustomize.py").write_text(f"HIDDEN = {hidden!r}\n{HIDE}")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", "pico.lab.gpu", "--smoke", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    errors = [line for line in json.dumps(report, indent=1).splitlines() if '"error"' in line]
    assert not errors and not report["kernels"]["failed"], done.stdout
    assert len(done.stdout) < 12_000

    # The story model is whole after its pieces are joined.
    pieces = sorted((tmp_path / "out").glob("story.tar.gz.*"))
    assert len(list((tmp_path / "out").iterdir())) <= 8
    with open(tmp_path / "joined", "wb") as joined:
        joined.writelines(piece.read_bytes() for piece in pieces)
    with tarfile.open(tmp_path / "joined") as archive:
        archive.extractall(tmp_path, filter="data")
    assert load(tmp_path / "stories-s", "stories").config.att_q_heads


@pytest.mark.slow
def test_importing_it_asks_for_no_gpu():
    """A process that has asked may not fork: its children could not use the GPU."""
    program = (
        "import torch; torch._C._cuda_getDeviceCount = torch._C._cuda_init = None; import pico.lab.gpu; print('none')"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "none\n" and not done.stderr


def test_sections_share_the_time():
    names = list(gpu.SECTIONS)
    wanted = sum(seconds for _, seconds in gpu.SECTIONS.values())
    for given in (0, 100, wanted, 2 * wanted):
        left = given
        for number in range(len(names)):  # each takes all that it may
            spent = gpu.time_share(names[number:], left)
            assert 0 <= spent <= left and (given == 0 or spent > 0)
            left -= spent
        assert abs(left) < 1e-6
    assert gpu.time_share(names, wanted) == gpu.SECTIONS[names[0]][1] and gpu.time_share(["story"], -1) == 0


def test_a_section_that_fails_dies_or_hangs_does_not_stop_the_next(tmp_path, monkeypatch):
    def hangs(section):
        section.note(begun=True)
        time.sleep(99)

    sections = {
        "raises": lambda section: 1 / 0,
        "dies": lambda section: os.abort(),
        "hangs": hangs,
        "last": lambda section: section.note(reached=True),
    }
    monkeypatch.setattr(gpu, "GRACE", 0.2)
    monkeypatch.setattr(gpu, "SECTIONS", {name: (function, 1) for name, function in sections.items()})
    for name in sections:
        gpu.run_section(name, tmp_path, 1.5 if name == "hangs" else 60, True)
    report = read_report(tmp_path)
    errors = {name: figures.get("error") for name, figures in report.items()}
    assert errors == {
        "raises": "ZeroDivisionError: division by zero",
        "dies": "its process ended with -6",
        "hangs": "ended: no time left",
        "last": None,
    }
    assert report["hangs"]["begun"] and report["last"]["reached"]
    log = (tmp_path / "log.txt").read_text()
    assert "ZeroDivisionError" in log and "Fatal Python error: Aborted" in log


def test_the_table_fits_and_tells_what_was_not_measured():
    assert set(gpu.measured({})) == set(gpu.BARS) and not any(gpu.measured({}).values())
    report = {"micro": {f"entry {i}": {"ms": 1.0, "p10": 1.0, "p90": 1.0} for i in range(999)}}
    assert len(gpu.report_text(report)) < 12_000 and "None" in gpu.report_text({})
