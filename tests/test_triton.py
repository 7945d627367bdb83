"""The Triton kernels without a GPU: interpreted, and compiled ahead; and who imports Triton.

Each in a process of its own: Triton reads TRITON_INTERPRET when it is imported. The tests' own never imports it.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton isn't installed: `make triton` adds it to .venv"
)


def python(*arguments: str, **environment: str) -> str:
    """What it prints."""
    run = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=os.environ | environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


@needs_triton
def test_interpreted() -> None:
    """All checks that test_distillation.py has for a GPU. (numpy warns of the infinities beyond the vocabulary.)"""
    file = "tests/test_distillation.py"
    print(python("-m", "pytest", "-m", "gpu", "-W", "ignore::RuntimeWarning", file, TRITON_INTERPRET="1"))


@needs_triton
def test_compiled_ahead(tmp_path: Path) -> None:
    """No register is spilt, and two programs of 512 threads fit into a multiprocessor's 65,536 registers."""
    lines = python("-m", "tests.compiled_ahead", TRITON_CACHE_DIR=str(tmp_path)).splitlines()
    kernels = [json.loads(line) for line in lines]
    assert {kernel["architecture"] for kernel in kernels} == {80, 90, 100}
    assert [kernel for kernel in kernels if kernel["stack"]] == []
    assert [kernel for kernel in kernels if kernel["registers"] > 64] == []


def test_on_cpus_the_kernels_are_not_imported() -> None:
    """Nor do they need Triton there. (Torch imports it for purposes of its own, where it is installed.)"""
    python("-c", """if True:
        import sys, torch, train_dilbert
        from model.kernels import distillation
        head = distillation.Head(*(torch.ones(shape, requires_grad=True) for shape in ((2, 3), (5, 3), (5,))))
        weights = distillation.Weights(1.0, ce=1.0, mlm=1.0)
        distillation.vocabulary_losses(head, head, torch.tensor([1, -1]), weights)[0].backward()
        assert "model.kernels.distillation_triton" not in sys.modules
    """)  # fmt: skip


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    """The whole loss takes Triton's kernel, and nothing in it waits for the GPU."""
    import torch
    from test_distillation import WEIGHTS, heads

    from model.kernels import distillation

    student, teacher, labels = heads(40, 101, 24)
    rows = distillation.row_kernel(student, teacher)
    assert rows.__name__ == "triton_rows"
    distillation.vocabulary_losses(student, teacher, labels, WEIGHTS["all"])  # compiled
    torch.cuda.set_sync_debug_mode("error")
    try:
        distillation.vocabulary_losses(student, teacher, labels, WEIGHTS["all"])[0].backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
