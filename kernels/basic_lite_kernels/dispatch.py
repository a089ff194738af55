"""Which implementation computes the operations, and why: the choice is logged, and never made silently."""

from __future__ import annotations

import functools
import importlib
import logging
import os
from collections.abc import Callable
from types import ModuleType
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from basic_lite_kernels import reference

logger = logging.getLogger(__name__)

# Operation → the file that has its kernels.
OPERATIONS = {
    "capture_layer": "direction_loss",
    "direction_loss": "direction_loss",
    "vocab_kl": "vocab_kl",
    "attention_mass": "attention_mass",
}

# DAS in two calls around the moment when a_i is known; the Triton one is a single pass over layer K.
PASSES = {"capture_and_direction_loss": "direction_loss", "weighted_direction_loss": "direction_loss"}

# The oldest NVIDIA cards with bf16 matrix instructions; the kernels are compiled and checked from here on.
LEAST_CAPABILITY = (8, 0)


# Why one operation of three stays with the reference there.
AMD = "an AMD card, where its kernels spill registers"


class KernelUnavailable(RuntimeError):
    """An implementation was asked for by name and can't run here."""


class Choice(NamedTuple):
    """A chosen implementation: its name, why it was chosen, and the module that has the operations."""

    name: str
    reason: str
    operations: ModuleType


def choose(kernels: Literal["auto", "triton", "reference"] = "auto") -> Choice:
    """Pick who computes the operations; log what was picked and why.

    ``auto`` is Triton where torch has an NVIDIA or AMD GPU, Triton can be imported, and a trial of the kernels on that
    GPU agrees with the reference. On AMD's cards ``attention_mass`` goes to the reference all the same. Tensors that
    live elsewhere (a model on the CPU of a machine with a GPU) go to the reference too, call by call; the first such
    call is logged. ``triton`` has no way back: it raises.

    Raises:
        KernelUnavailable: ``triton`` was asked for and can't run here; the message says why. Raised by an operation
            too, if its tensors are not on a GPU.
        ValueError: an unknown name.
    """
    if kernels == "reference":
        choice = Choice("reference", "asked for by name", reference)
    elif kernels in ("auto", "triton"):
        obstacle = _interpreter_obstacle(kernels) if _interpreted() else _gpu_obstacle()
        if obstacle is None and kernels == "triton" and not _interpreted() and _is_amd():
            obstacle = f"attention_mass on {AMD}; kernels: auto takes Triton for the other operations"
        if obstacle is None:
            where = "through Triton's interpreter (TRITON_INTERPRET)" if _interpreted() else _gpu_name()
            reason = f"asked for by name, {where}" if kernels == "triton" else where
            if _is_amd() and not _interpreted():
                reason += "; attention_mass by the reference"
            choice = Choice("triton", reason, _triton_operations(falls_back=kernels == "auto"))
        elif kernels == "triton":
            raise KernelUnavailable(f"the Triton kernels were asked for and can't run here: {obstacle}")
        else:
            choice = Choice("reference", f"the Triton kernels can't run here: {obstacle}", reference)
    else:
        raise ValueError(f"unknown kernels {kernels!r}; known are auto, triton, reference")
    logger.info("BASIC operations: %s (%s)", choice.name, choice.reason)
    return choice


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on", "y")


def _is_amd() -> bool:
    return torch.version.hip is not None


def _gpu_name() -> str:
    return torch.cuda.get_device_name()


def _import_obstacle() -> str | None:
    for name in ("triton", *(f"basic_lite_kernels.{file}" for file in dict.fromkeys(OPERATIONS.values()))):
        try:
            importlib.import_module(name)
        except ImportError as error:
            return f"{name} can't be imported ({error})"
    return None


def _interpreter_obstacle(kernels: str) -> str | None:
    """The interpreter shows that a kernel is right, thousands of times slower: nothing to choose unasked."""
    if kernels == "auto":
        return "TRITON_INTERPRET is set, which interprets kernels on the CPU, far slower than the reference"
    return _import_obstacle()


@functools.cache
def _gpu_obstacle() -> str | None:
    """Why kernels can't run on this machine's GPU; None where they can. Looked up once a process."""
    if not torch.cuda.is_available():
        return "torch finds no NVIDIA or AMD GPU"
    capability = torch.cuda.get_device_capability()
    if not _is_amd() and capability < LEAST_CAPABILITY:
        return f"{_gpu_name()} has compute capability {capability[0]}.{capability[1]}, the kernels need 8.0"
    return _import_obstacle() or _trial_obstacle()


def _trial_obstacle() -> str | None:
    """What goes wrong when each operation is tried on something small; None if nothing.

    A machine can have a GPU and Triton and still not run kernels: no C compiler, a driver that is too old, no float32
    product of bf16 factors.
    """
    for name in ("vocab_kl", "direction_loss", "attention_mass"):
        if name == "attention_mass" and _is_amd():
            continue
        kernel = getattr(importlib.import_module(f"basic_lite_kernels.{name}"), name)
        try:
            truth = _trial(name, getattr(reference, name))
            error = float((_trial(name, kernel) - truth).norm() / truth.norm())
        except Exception as failure:  # a library's error of any type means the same here, and it goes into the log
            return f"a trial of {name} failed ({type(failure).__name__}: {failure})"
        if not error < 0.05:
            return f"a trial of {name} was wrong by {error:.3g} of its result"
    return None


def _trial(name: str, operation: Callable[..., Tensor], device: str = "cuda") -> Tensor:
    """What an operation finds for a few numbers: the gradient of a loss, or its result."""
    numbers = torch.linspace(-1, 1, 2 * 33 * 16, device=device).sin()
    if name == "attention_mass":
        query, key = numbers[:1024].view(2, 2, 1, 16, 16).to(torch.bfloat16)
        visual = torch.zeros(2, 16, dtype=torch.bool, device=device)
        visual[:, 2:6] = True
        masks = {"text_queries": ~visual, "visual": visual, "valid": torch.ones_like(visual)}
        return operation(query, key, scaling=0.25, **masks)
    with torch.enable_grad():
        v = numbers[:64].view(4, 16).clone().requires_grad_()
        weights = torch.ones(4, device=device)
        if name == "vocab_kl":
            loss = operation(v, v.detach().flip(0), numbers[: 33 * 16].view(33, 16).to(torch.bfloat16), weights)
        else:
            loss = operation(v, v.detach().flip(0), weights)
        return torch.autograd.grad(loss, v)[0]


def _triton_operations(*, falls_back: bool) -> ModuleType:
    """A module with the operations of ``reference`` by the same names and signatures, computed by kernels."""
    module = ModuleType("basic_lite_kernels.triton_operations", "The operations, computed by Triton kernels.")
    for name, file in (OPERATIONS | PASSES).items():
        kernel = getattr(importlib.import_module(f"basic_lite_kernels.{file}"), name)
        vars(module)[name] = _where_tensors_live(name, kernel, getattr(reference, name), falls_back)
    return module


def _unread(name: str, args: tuple[Any, ...]) -> str | None:
    """Inputs that the kernels don't take, or weren't compiled and checked for; None: none such."""
    tensors = [x for x in args if isinstance(x, Tensor) and x.is_floating_point()]
    if any(x.dtype == torch.float64 for x in tensors):
        return "float64 tensors"
    if name == "attention_mass":
        if _is_amd() and not _interpreted():
            return AMD
        if tensors[0].dtype != tensors[1].dtype:
            return "queries and keys of different types"
        return None if tensors[0].shape[-1] % 16 == 0 else "a head size that is no multiple of 16"
    if file_of(name) == "direction_loss" and (tensors[0].shape[-1] > 8192 or tensors[0].shape[-1] % 16):
        return "rows that are longer than 8192, or no multiple of 16"
    return None


def file_of(name: str) -> str:
    """The kernel file an operation is in."""
    return (OPERATIONS | PASSES)[name]


def _where_tensors_live(
    name: str, kernel: Callable[..., Any], plain: Callable[..., Any], falls_back: bool
) -> Callable[..., Any]:
    """The kernel for tensors that it can read; for others the reference, said once, or an error."""
    said = False

    @functools.wraps(plain)
    def operation(*args: Any, **kwargs: Any) -> Any:
        nonlocal said
        device = next(x.device for x in (*args, *kwargs.values()) if isinstance(x, Tensor))
        on_gpu = device.type == "cuda" or _interpreted()
        if any(isinstance(x, reference.Direction) for x in args):
            return plain(*args, **kwargs)  # the reference began, so it ends
        unread = _unread(name, args) if on_gpu and falls_back else None
        if on_gpu and unread is None:
            return kernel(*args, **kwargs)
        if not falls_back:
            raise KernelUnavailable(f"the Triton kernels were asked for, and {name} got tensors on {device}, not a GPU")
        if not said:
            said = True
            logger.info("BASIC operations: %s by the reference, for %s", name, unread or f"tensors on {device}")
        return plain(*args, **kwargs)

    return operation
