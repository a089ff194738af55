"""The looks themselves. Each runs in a process of its own (see ``probe.py``), and gives plain values."""

import json
import os
import platform
import shutil
from collections.abc import Callable
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from basic_lite.cores import usable_cores
from basic_lite.tools.doctor.probe import MARK, without_names
from basic_lite.training.places import RUNS

# Shown always; the last one is nobody's need.
SHOWN = (
    "torch", "transformers", "bitsandbytes", "peft", "accelerate", "datasets", "triton", "liger-kernel", "flash-attn",
)  # fmt: skip
SHARED_MEMORY = Path("/dev/shm")
# Memory that a container may have, as the kernel says it (cgroups 2 and 1).
_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
# Settings of the environment that change what a run does. None of them holds a name or a secret.
_SETTINGS = ("CUDA_VISIBLE_DEVICES", "HF_HUB_OFFLINE", "TRITON_INTERPRET", "PYTORCH_CUDA_ALLOC_CONF", "WORLD_SIZE")


def machine() -> dict[str, Any]:
    """System, Python, packages, memory, disks, settings. Without torch."""
    import psutil

    memory = psutil.virtual_memory()
    limit = min(filter(None, map(_limit, _LIMITS)), default=memory.total)
    return {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in SHOWN},
        "unmet": _unmet(),
        "memory_bytes": min(memory.total, limit),
        "free_memory_bytes": min(memory.available, limit),
        "cores": usable_cores(),
        "shared_bytes": shutil.disk_usage(SHARED_MEMORY).total if SHARED_MEMORY.is_dir() else None,
        "settings": {name: os.environ[name] for name in _SETTINGS if os.environ.get(name)},
    }


def runs_disk() -> dict[str, Any]:
    """Where a run would write."""
    return _disk(RUNS)


def cache_disk() -> dict[str, Any]:
    """Where weights are downloaded to."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return _disk(Path(HF_HUB_CACHE))


def torch_sees() -> dict[str, Any]:
    """Torch's build, the driver, the card, and why a card isn't used."""
    import torch

    from basic_lite.model.device import look_for_gpu, why_no_gpu

    seen = look_for_gpu()
    build = f"for ROCm {seen.built_for}" if torch.version.hip else f"for CUDA {seen.built_for}"
    facts: dict[str, Any] = {
        "build": build if seen.built_for else "for the CPU",
        "card": None,
        "driver": seen.driver,
        "driver_cuda": seen.driver_cuda,
        "unused": None if torch.cuda.is_available() else why_no_gpu(seen),
    }
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info(0)
        facts |= {
            "card": torch.cuda.get_device_name(0),
            "cards": torch.cuda.device_count(),
            "card_bytes": total,
            "free_card_bytes": free,
            "capability": list(torch.cuda.get_device_capability(0)),
            "bf16": torch.cuda.is_bf16_supported(including_emulation=False),
        }
    return facts


def triton_runs() -> dict[str, Any]:
    """Whether our kernels and Liger's compile, run and are right here, as a run would find."""
    import torch

    from basic_lite.model.liger_kernels import choose_liger
    from basic_lite_kernels.operations import EAGER, choose

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    operations, reason = choose("auto", device)
    said: list[str] = []
    liger = choose_liger("auto", device, said.append)
    why = "" if liger else without_names(" ".join(said) or reason)
    return {"runs": operations is not EAGER, "why": without_names(reason), "liger": liger, "why_no_liger": why}


def four_bit_runs() -> dict[str, Any]:
    """What a product with 4-bit weights, and its gradient, are off by, as a share of their size."""
    import torch
    from bitsandbytes.nn import Linear4bit

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    dtype = torch.bfloat16 if bf16 else torch.float32
    weight = torch.randn(128, 256, generator=torch.Generator().manual_seed(0))
    linear = Linear4bit(256, 128, bias=False, compute_dtype=dtype, quant_type="nf4", quant_storage=torch.uint8)
    linear.load_state_dict({"weight": weight})
    linear = linear.to(device)
    x = torch.randn(16, 256, generator=torch.Generator().manual_seed(1)).to(device, dtype).requires_grad_()
    out = linear(x)
    (gradient,) = torch.autograd.grad(out, x, torch.ones_like(out))
    out = out.detach()
    truth = weight.to(device)
    pairs = ((out, x.detach().float() @ truth.T), (gradient, truth.sum(0).expand(16, -1)))
    return {
        "error": max(float((found.float() - true).norm() / true.norm()) for found, true in pairs),
        "on": device.type,
    }


def training_imports() -> dict[str, Any]:
    """Whether all that a training needs can be imported together."""
    import basic_lite.training.loop

    return {"module": basic_lite.training.loop.__name__}


LOOKS: dict[str, Callable[[], dict[str, Any]]] = {
    "machine": machine,
    "runs_disk": runs_disk,
    "cache_disk": cache_disk,
    "torch": torch_sees,
    "triton": triton_runs,
    "four_bit": four_bit_runs,
    "training": training_imports,
}


def _version(name: str) -> str | None:
    with suppress(metadata.PackageNotFoundError):
        return metadata.version(name)
    return None


def _unmet() -> list[tuple[str, str, str | None]]:
    """What the installed basic-lite asks for and isn't there: name, range, and the version that is there instead."""
    try:
        asked = [Requirement(text) for text in metadata.requires("basic-lite") or []]
    except metadata.PackageNotFoundError:  # run from its source, not installed
        return []
    needed = [one for one in asked if one.marker is None or one.marker.evaluate({"extra": ""})]
    there = {one.name: _version(one.name) for one in needed}
    return [
        (one.name, str(one.specifier), version)
        for one in needed
        if (version := there[one.name]) is None or not one.specifier.contains(version, prereleases=True)
    ]


def _limit(path: Path) -> int | None:
    try:
        text = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return int(text) if text.isdecimal() else None


def _disk(folder: Path) -> dict[str, Any]:
    """Room where a folder is, or would be made, and whether it may be written."""
    there = next(place for place in [folder.absolute(), *folder.absolute().parents] if place.is_dir())
    return {"free_bytes": shutil.disk_usage(there).free, "writable": os.access(there, os.W_OK | os.X_OK)}


def main(name: str) -> None:
    """Print a look's facts as a line of JSON."""
    print(f"\n{MARK}{json.dumps(LOOKS[name]())}", flush=True)
