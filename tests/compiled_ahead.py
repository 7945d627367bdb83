"""The Triton kernels compiled for GPUs that need not be here, and what each takes of them (a command).

    python -m tests.compiled_ahead

Every call is made as in training, on small tensors; in place of the launch, the kernel is compiled for an architecture.
One line of JSON each: for what, registers of a thread, bytes of its stack (registers spilt to memory).
"""

import json
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget

from model.kernels import distillation_triton
from model.kernels.distillation import Weights

ARCHITECTURES = (80, 90, 100)  # A100; H100, H200; B200
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
V, P = 30522, 30528
CALLS = {  # weights, whether there is a teacher, whether the gradient is needed
    "published": (Weights(1.0, ce=5.0, mlm=13.0, temperature=2.0), True, True),
    "soft targets": (Weights(1.0, ce=5.0), True, True),
    "masked words": (Weights(1.0, mlm=1.0), False, True),
    "squares": (Weights(1.0, mse=1.0), True, True),
    "all": (Weights(1.0, ce=5.0, mlm=13.0, mse=0.3, temperature=3.0), True, True),
    "held out": (Weights(1.0, temperature=2.0), True, False),
    "held out, no teacher": (Weights(1.0), False, False),
}


class Driver:
    """What Triton asks of a GPU before it compiles for it."""

    def __init__(self, architecture: int) -> None:
        self.architecture = architecture

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.architecture, 32)

    def get_current_device(self) -> int:
        return self.architecture  # compiled kernels are kept by device

    def get_current_stream(self, device: int) -> int:
        return 0


class Compiling:
    """In place of a kernel: compiles where that would be launched."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def launch(*args: Any, **kwargs: Any) -> None:
            self.compiled = self.kernel.warmup(*args, grid=grid, **kwargs)

        return launch


def usage(cubin: bytes) -> dict[str, int]:
    """Registers of a thread, and bytes of its stack."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(cubin)
        tool = triton.knobs.nvidia.cuobjdump.path
        found = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    fields = dict(re.findall(r"\b(REG|STACK):(\d+)", found))
    return {"registers": int(fields["REG"]), "stack": int(fields["STACK"])}


def main() -> None:
    compiling = distillation_triton.row_kernel = Compiling(distillation_triton.row_kernel)
    labels = torch.zeros(1, dtype=torch.int64)
    for architecture in ARCHITECTURES:
        triton.runtime.driver.set_active(Driver(architecture))
        for dtype in DTYPES:
            logits = torch.zeros(1, P, dtype=dtype)
            for call, (weights, taught, gradient) in CALLS.items():
                distillation_triton.triton_rows(logits, logits if taught else None, labels, weights, V, gradient)
                row = {"architecture": architecture, "dtype": str(dtype), "call": call}
                print(json.dumps(row | usage(compiling.compiled.asm["cubin"])), flush=True)


if __name__ == "__main__":
    main()
