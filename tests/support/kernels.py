"""Where the tests of Triton kernels run, and what they share.

A kernel runs on a GPU, or anywhere through Triton's interpreter, which must be switched on before kernels are defined.
So a test file of kernels marks them ``@kernel_test`` (the outermost decorator): on a GPU they run as they stand;
elsewhere they exist only in a process with the interpreter. ``tests/kernels/test_interpreted.py`` starts one for all
files together, since a start costs seconds, and ``TRITON_INTERPRET=1 pytest -n 0 FILE`` is one for a single file. A
file whose kernel tests are too slow for a plain run ends with a soak test that calls ``run_interpreted(__file__)``.

The interpreter of triton 3.7.1 and 3.9 is right in float32 and float16; in bfloat16 its ``tl.dot`` gives garbage, its
additions may give NaN. It runs programs one after another: it shows no races.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

HAS_TRITON = importlib.util.find_spec("triton") is not None
INTERPRETED = HAS_TRITON and os.environ.get("TRITON_INTERPRET") == "1"
ON_GPU = HAS_TRITON and torch.cuda.is_available() and not INTERPRETED
RUNS_KERNELS = INTERPRETED or ON_GPU
CPU = torch.device("cpu")
DEVICE = torch.device("cuda") if ON_GPU else CPU

only_gpu = pytest.mark.skipif(not ON_GPU, reason="only a GPU shows it")
# Slow through the interpreter, where one case like it is enough in a plain run; a GPU runs it always.
slow_interpreted = (pytest.mark.soak,) if INTERPRETED else ()


def kernel_test(test: Any) -> Any:
    """Mark a test that runs kernels: it exists only in a process that can run them. The outermost decorator."""
    test.runs_kernels = True
    return test if RUNS_KERNELS else None


def pytest_collection_modifyitems(items: list[Any]) -> None:
    """Keep only tests that run kernels. ``run_interpreted`` loads this file as a plugin."""
    items[:] = [item for item in items if getattr(item.function, "runs_kernels", False)]


def run_interpreted(*files: str | Path, slow: bool = False) -> None:
    """Run the kernel tests of files through the interpreter in a process of their own, and fail as they do.

    Args:
        slow: those marked ``slow_interpreted``, else the others.
    """
    if RUNS_KERNELS:
        pytest.skip("this process runs the kernel tests itself")
    if not HAS_TRITON:
        pytest.skip("triton isn't installed, so there are no kernels to test")
    root = Path(__file__).resolve().parents[2]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "TRITON_"))}
    paths = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment |= {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-m", "pytest", "-q", "--numprocesses=0", "-p", "no:cacheprovider", "-p", __name__]
    command += [
        "-c",
        str(root / "pyproject.toml"),
        "--rootdir",
        str(root),
        *(str(Path(file).resolve()) for file in files),
    ]
    command += ["-m", "soak"] if slow else []
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    skip_where_the_interpreter_is_broken(done.stdout + done.stderr)
    # 5: nothing was collected, that is no test ran.
    assert done.returncode == 0, f"through the interpreter, exit {done.returncode}:\n{done.stdout}\n{done.stderr}"


def skip_where_the_interpreter_is_broken(output: str) -> None:
    """Skip with triton 3.6 and numpy >= 2.4, which don't work together."""
    import numpy
    import triton

    old = tuple(map(int, triton.__version__.split(".")[:2])) < (3, 7)
    if old and "only 0-dimensional arrays can be converted to Python scalars" in output:
        pytest.skip(f"the interpreter of triton {triton.__version__} doesn't work with numpy {numpy.__version__}")


def loss_and_gradients(loss: Tensor, *inputs: Tensor, upstream: float = 1.0) -> list[Tensor]:
    """The loss, and its gradients to the inputs times ``upstream``. The graph is kept."""
    gradients = torch.autograd.grad(loss * upstream, inputs, retain_graph=True)
    return [loss.detach(), *gradients]


class MadeShapes(TorchDispatchMode):
    """Counts the shapes of all tensors that are made inside."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: Counter[tuple[int, ...]] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(value, Tensor):
                self.shapes[tuple(value.shape)] += 1
        return out


def draw_on_cpu(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    """Normal numbers on the CPU, where eager code is tested whatever the machine has."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def draw(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    """The same numbers where kernels run."""
    return draw_on_cpu(*shape, seed=seed, scale=scale).to(DEVICE)


def relative(value: Tensor, truth: Tensor) -> float:
    """Error relative to the size of the whole tensor; NaN and infinity count as infinite."""
    error = float((value.double() - truth.double()).norm() / truth.double().norm().clamp_min(1e-300))
    return error if error == error else float("inf")


def assert_as_good_as(ours: Tensor, eager: Tensor, truth: Tensor, tolerance: float) -> None:
    """Our error is at most eager code's error plus ``tolerance``."""
    error, allowed = relative(ours, truth), relative(eager, truth) + tolerance
    assert error <= allowed, f"error {error:.3g}, eager code's plus tolerance is {allowed:.3g}"


@contextmanager
def nan_filled_buffers() -> Iterator[None]:
    """Every ``torch.empty`` starts as NaN, so that an element nobody wrote shows."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert torch.utils.deterministic.fill_uninitialized_memory and torch.empty(3).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def peak_bytes(work: Callable[[], object], device: torch.device = DEVICE) -> int:
    """Most bytes that ``work`` had allocated at once on ``device``, beyond what was there before."""
    from bench import measure  # here, since as a plugin this file is loaded before the repository's root is on the path

    peak = measure.peak_bytes(work, device)
    assert peak > 0, "the profiler gave no records"
    return peak
