"""The Triton kernels, each kind of check in a process of its own: see kernel_checks.py and kernel_build.py.

Whether Triton interprets or compiles is settled when it is first imported, so it cannot be settled here.
"""

import importlib.util
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import pico.model.kernels

TESTS = Path(__file__).parent
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def python(*arguments, **variables):
    """Exit code and output of a fresh Python in which TRITON_INTERPRET is what `variables` says."""
    environment = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "PYTEST_ADDOPTS")}
    environment |= {"PYTHONPATH": str(TESTS.parents[1]), "OMP_NUM_THREADS": "1"} | variables
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True)
    return done.returncode, done.stderr + done.stdout


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("interpret", [True, pytest.param(False, marks=needs_gpu)])
def test_kernels_equal_the_formulas(interpret):
    code, output = python(str(TESTS / "kernel_checks.py"), TRITON_INTERPRET=str(int(interpret)))
    if "only 0-dimensional arrays can be converted" in output:
        pytest.skip("this Triton's interpreter (3.6) is older than this NumPy (2.4): it cannot run a loop")
    assert code == 0 and output.endswith(" checks passed\n"), output


@needs_triton
@pytest.mark.skipif(platform.system() != "Linux", reason="Triton's compiler for NVIDIA comes with its Linux wheel")
@pytest.mark.slow
def test_kernels_compile_without_a_gpu():
    code, output = python("-m", "pytest", "-p", "no:cacheprovider", "--tb=short", str(TESTS / "kernel_build.py"))
    assert code == 0 and " passed" in output and " skipped" not in output.splitlines()[-1], output


def test_available_says_whether_the_kernels_can_run():
    """Without triton nothing fails; with it, a GPU or the interpreter decides."""
    ask = "import pico.model.kernels, sys; print(pico.model.kernels.available(), 'triton' in sys.modules)"
    hidden = "import importlib.util as u; find = u.find_spec; "
    hidden += "u.find_spec = lambda name, *rest: None if name == 'triton' else find(name, *rest); "
    assert python("-c", hidden + ask, TRITON_INTERPRET="1") == (0, "False False\n")
    if importlib.util.find_spec("triton"):
        assert python("-c", ask, TRITON_INTERPRET="1") == (0, "True False\n")
        assert pico.model.kernels.available() == torch.cuda.is_available()
