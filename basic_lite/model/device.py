"""What a program computes on, and its memory: said first, with a warning where a GPU is there and isn't used."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from basic_lite.console import Say
from basic_lite.cores import usable_cores
from basic_lite.sizes import GIB, MIB, number_of, size_text

if sys.platform != "win32":
    import resource

# CUDA versions that torch 2.13 is built for, the newest first, and the oldest driver that runs each on Linux and
# Windows (CUDA's release notes: a driver runs all versions of its CUDA's major number, and of those before).
BUILDS = ((13, "cu130", 580), (12, "cu126", 525))
INDEX = "https://download.pytorch.org/whl"
# CUDA's context, its libraries' workspaces, and what the caching allocator can't use of what it holds.
ALLOWANCE_BYTES = GIB // 2


@dataclass(frozen=True)
class GpuFacts:
    """What tells why torch sees no GPU."""

    torch_version: str
    built_for: str | None  # the CUDA or ROCm version of torch's build; None: a build for CPUs
    card: bool  # an NVIDIA card's driver is on this machine
    driver: str | None = None
    driver_cuda: str | None = None  # the newest CUDA that the driver runs
    visible: str | None = None  # CUDA_VISIBLE_DEVICES; None: not set


def tell_device(
    device: torch.device, asked: str, say: Say, *, dtype: torch.dtype | None = None, autocast: bool = False
) -> None:
    """Say what the work runs on, and warn where a GPU was to be expected.

    Args:
        asked: what the user asked for; ``cpu`` expects no GPU.
        dtype: of the frozen weights, where that is known before they are loaded.
        autocast: forwards run under bfloat16 autocast.
    """
    types = [dtype_name(dtype)] if dtype is not None else []
    if autocast and dtype != torch.bfloat16:
        types.append("bfloat16 autocast")
    say(", ".join([f"device: {device_text(device)}", *types, f"torch {torch.__version__}"]))
    if asked == "auto" and device.type == "cpu" and (warning := why_no_gpu(look_for_gpu())):
        say(f"warning: {warning}")


def warn_of_slow_types(device: torch.device, chosen: Mapping[str, torch.dtype], say: Say) -> None:
    """Warn where the processor has no instructions for a 16-bit type.

    Such products take 50 times as long as in float32 (an AMD EPYC that has AVX2 and no AVX-512, one thread, matrices of
    512 rows: 42 GFLOP/s in float32, .8 in bfloat16 and in float16).

    Args:
        chosen: types to compute in, by the setting that puts float32 in their place.
    """
    slow = {mend: dtype for mend, dtype in chosen.items() if not computes_in(device, dtype)}
    if slow:
        names = " and ".join(dict.fromkeys(map(dtype_name, slow.values())))
        say(
            f"warning: this processor has no instructions for {names}: it will take many times as long as in float32. "
            f"Set {' and '.join(slow)}"
        )


def computes_in(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether products of this type are as fast as the hardware can; True where torch can't tell."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return True
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype != torch.float16 or bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())


def device_text(device: torch.device) -> str:
    """The device's name and size."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return f"{torch.cuda.get_device_name(device)} ({size_text(total)}, {size_text(free)} free)"
    count = usable_cores()
    return f"CPU ({number_of(count, 'core')})"


def memory_of(device: torch.device) -> tuple[int, int]:
    """Bytes that the device has, and bytes that other processes hold of them.

    On a GPU nobody says which process holds what: this one's context counts as the estimate's allowance, and the pages
    of a paged optimizer can't be told from another program's.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return total, max(total - free - torch.cuda.memory_reserved(device) - ALLOWANCE_BYTES, 0)
    host = psutil.virtual_memory()
    return host.total, max(host.total - host.available - psutil.Process().memory_info().rss, 0)


def has_bfloat16(device: torch.device) -> bool:
    """Whether it is a GPU that computes in bfloat16 itself."""
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def peak_memory_gib(device: torch.device) -> float:
    """Peak memory so far in GiB: allocated on the GPU, else the resident size of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GIB
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset / GIB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS, KiB elsewhere
    return peak / GIB if sys.platform == "darwin" else peak / MIB


def dtype_name(dtype: torch.dtype) -> str:
    """As torch's attribute is called: float32."""
    return str(dtype).removeprefix("torch.")


def why_no_gpu(facts: GpuFacts) -> str | None:
    """Why torch uses the CPU though there is a card, and what mends it; None where there is no card."""
    if not facts.card:
        return None
    runs_on = "this machine has an NVIDIA card, but the run is on the CPU, many times slower"
    if facts.built_for is None:
        return f"{runs_on}: torch {facts.torch_version} is a build for CPUs. Install one for CUDA: {_install(facts)}"
    if facts.visible is not None and facts.visible.strip() in ("", "-1"):
        return f"{runs_on}: CUDA_VISIBLE_DEVICES is {facts.visible!r}, which hides the card; unset it"
    needed, runs = _version(facts.built_for), _version(facts.driver_cuda)
    if needed and runs and runs[0] < needed[0]:
        oldest = next((driver for major, _, driver in BUILDS if major == needed[0]), None)
        newer = f" to {oldest} or newer" if oldest else ""
        return (
            f"{runs_on}: its driver {facts.driver} runs CUDA up to {facts.driver_cuda}, and torch "
            f"{facts.torch_version} needs {facts.built_for}. Update the driver{newer}"
            + (f", or install an older build: {_install(facts)}" if runs[0] >= BUILDS[-1][0] else "")
        )
    return (
        f"{runs_on}: torch {facts.torch_version} can't open it (torch.cuda.is_available() is false). Restart after a "
        "driver update, give a container its cards (--gpus all); "
        '`python -c "import torch; torch.zeros(1).cuda()"` shows the reason'
    )


def _install(facts: GpuFacts) -> str:
    """The command for the newest build that the driver runs; the newest of all where that isn't known."""
    runs = _version(facts.driver_cuda)
    build = next((name for major, name, _ in BUILDS if not runs or major <= runs[0]), BUILDS[-1][1])
    # Without forcing, pip takes an installed build for CPUs of the same version as good.
    return f"pip install --force-reinstall torch --index-url {INDEX}/{build}"


def _version(text: str | None) -> tuple[int, ...]:
    found = re.match(r"(\d+)\.(\d+)", text or "")
    return tuple(map(int, found.groups())) if found else ()


def look_for_gpu() -> GpuFacts:
    """The facts of this machine. Asks the driver, in a second or two at most, only where there is one."""
    report = _output_of(["nvidia-smi"])
    driver = re.search(r"Driver Version:\s*([\d.]+)", report)
    cuda = re.search(r"CUDA (?:UMD )?Version:\s*([\d.]+)", report)
    return GpuFacts(
        torch_version=torch.__version__,
        built_for=torch.version.cuda or getattr(torch.version, "hip", None),
        card=bool(driver) or any(Path(place).exists() for place in _driver_files()),
        driver=driver[1] if driver else None,
        driver_cuda=cuda[1] if cuda else None,
        visible=os.environ.get("CUDA_VISIBLE_DEVICES"),
    )


def _driver_files() -> list[str]:
    """Files that a loaded NVIDIA driver has."""
    if sys.platform == "win32":
        return [os.path.join(os.environ.get("SYSTEMROOT", r"C:\Windows"), "System32", "nvcuda.dll")]
    return ["/proc/driver/nvidia/version"] if sys.platform == "linux" else []


def power_limit_watts(device: torch.device) -> float | None:
    """What a card may draw at most, by its driver; None where it doesn't say."""
    # The driver counts cards that CUDA_VISIBLE_DEVICES hides, so its numbers aren't torch's.
    name = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    query = ["nvidia-smi", f"--id={name}", "--query-gpu=power.limit", "--format=csv,noheader,nounits"]
    try:
        return float(_output_of(query))
    except ValueError:
        return None


def _output_of(command: Sequence[str]) -> str:
    """What a program prints; empty where it isn't there, fails, or takes too long."""
    if shutil.which(command[0]) is None:
        return ""
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return found.stdout
