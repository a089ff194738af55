"""Who computes the operations, and why: ``choose`` for a device, or ``EAGER``, or ``triton_operations.TRITON``."""

import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from basic_lite_kernels.eager_attention_mass import attention_mass
from basic_lite_kernels.eager_direction_loss import EagerTargetStream
from basic_lite_kernels.eager_row_scaling import row_scaling
from basic_lite_kernels.eager_vocab_kl import vocab_kl
from basic_lite_kernels.signatures import KernelUnavailable, Kind, MassTokens, Operations, TargetStream
from basic_lite_kernels.triton_support import AMD_SPILLS, LEAST_CAPABILITY, interpreted, is_amd

__all__ = ["EAGER", "Choice", "KernelUnavailable", "Kind", "Operations", "TargetStream", "choose"]

EAGER = Operations("reference", EagerTargetStream, row_scaling, vocab_kl, attention_mass)

# A kernel that is right differs from eager code by bf16's rounding, some 1 %; one that is broken by far more.
TRIAL_ERROR = 0.05


class Choice(NamedTuple):
    """The chosen operations, and why."""

    operations: Operations
    reason: str


def choose(
    kernels: Literal["auto", "triton", "reference"], device: torch.device, say: Callable[[str], None] = print
) -> Choice:
    """Pick who computes the operations for a model on ``device``. No other device is touched.

    ``auto`` is Triton where the device is an NVIDIA or AMD GPU, Triton can be imported, and a trial of the kernels on
    that GPU agrees with eager code; on AMD's cards ``attention_mass`` stays eager. An input that a kernel doesn't take
    goes to eager code, call by call. ``triton`` has no way back: it raises, here or at the call.

    Args:
        kernels: the recipe's key.
        device: where the model is.
        say: shows a line to the user, for calls that go to eager code later on.

    Raises:
        KernelUnavailable: ``triton`` was asked for and can't run here; the message says why.
        ValueError: an unknown name.
    """
    if kernels not in ("auto", "triton", "reference"):
        raise ValueError(f"unknown kernels {kernels!r}; known are auto, triton, reference")
    if kernels == "reference":
        return Choice(EAGER, "asked for by name")
    if device.type == "cuda" and device.index is None and torch.cuda.is_available():
        device = torch.device("cuda", torch.cuda.current_device())
    by_name = kernels == "triton"
    if not interpreted():
        obstacle = _gpu_obstacle(device)
    elif by_name:
        obstacle = _import_obstacle()
    else:  # it is for tests
        obstacle = "TRITON_INTERPRET is set, which interprets kernels on the CPU, far slower than plain PyTorch"
    if obstacle is None and by_name and not interpreted() and is_amd():
        obstacle = f"attention_mass: {AMD_SPILLS}; kernels: auto takes Triton for the other operations"
    if obstacle is not None and by_name:
        raise KernelUnavailable(f"the Triton kernels were asked for and can't run here: {obstacle}")
    if obstacle is not None:
        return Choice(EAGER, f"the Triton kernels can't run here: {obstacle}")
    # Not at the top: triton is a dependency on Linux x86-64 only, and takes its time to import.
    from basic_lite_kernels.triton_operations import TRITON, triton_or_eager

    where = "through Triton's interpreter (TRITON_INTERPRET)" if interpreted() else torch.cuda.get_device_name(device)
    if by_name:
        return Choice(TRITON, f"asked for by name, {where}")
    return Choice(triton_or_eager(say), where + ("; attention_mass as plain PyTorch" if is_amd() else ""))


def _import_obstacle() -> str | None:
    try:
        from basic_lite_kernels import triton_operations  # noqa: F401
    except ImportError as error:
        return f"triton can't be imported ({error})"
    return None


def device_obstacle(device: torch.device) -> str | None:
    """Why Triton's kernels can't run on this device, by what it is; None where nothing speaks against it."""
    if not torch.cuda.is_available():
        return "torch finds no NVIDIA or AMD GPU"
    if device.type != "cuda":
        return f"the model is on {device}, not a GPU"
    capability = torch.cuda.get_device_capability(device)
    if not is_amd() and capability < LEAST_CAPABILITY:
        found = f"{torch.cuda.get_device_name(device)} has compute capability {capability[0]}.{capability[1]}"
        return f"{found}, the kernels need {LEAST_CAPABILITY[0]}.{LEAST_CAPABILITY[1]}"
    return _import_obstacle()


@functools.cache
def _gpu_obstacle(device: torch.device) -> str | None:
    """Why kernels can't run on this device; None where they can. Looked up once a device."""
    return device_obstacle(device) or _trial_obstacle(device)


def _trial_obstacle(device: torch.device) -> str | None:
    """What goes wrong when each operation is tried on something small; None if nothing.

    A machine can have a GPU and Triton and still not run kernels: no C compiler, a driver that is too old, no float32
    product of bf16 factors.
    """
    from basic_lite_kernels.triton_operations import TRITON  # as in ``choose``

    for name, trial in TRIALS.items():
        if name == "attention_mass" and is_amd():
            continue
        try:
            with torch.cuda.device(device):
                truth = trial(EAGER, device)
                error = float((trial(TRITON, device) - truth).norm() / truth.norm())
        except Exception as failure:  # a library's error of any type means the same here, and the user reads it
            return f"a trial of {name} failed ({type(failure).__name__}: {failure})"
        if not error < TRIAL_ERROR:
            return f"a trial of {name} was wrong by {error:.3g} of its result"
    return None


def _numbers(device: torch.device, *shape: int) -> Tensor:
    count = functools.reduce(int.__mul__, shape)
    return torch.linspace(-1, 1, count, device=device).sin().view(shape)


def _try_vocab_kl(operations: Operations, device: torch.device) -> Tensor:
    v = _numbers(device, 4, 16).requires_grad_()
    table = _numbers(device, 33, 16).to(torch.bfloat16)
    return _gradient(lambda: operations.vocab_kl(v, v.detach().flip(0), table, torch.ones(4, device=device)), v)


def _try_direction_loss(operations: Operations, device: torch.device) -> Tensor:
    v = _numbers(device, 4, 16).requires_grad_()
    stream, positions = operations.target_stream("cosine"), torch.arange(4, device=device)
    hidden = v.detach().flip(0)[None].to(torch.bfloat16)
    with torch.no_grad():
        stream.add(hidden, positions, 0.5)
        stream.finish(hidden.cos(), positions, 0.5, v)
    return _gradient(lambda: stream.loss(torch.ones(4, device=device)), v)


def _try_row_scaling(operations: Operations, device: torch.device) -> Tensor:
    """The sizes of rows, and DAS of rows that are scaled by them."""
    v = _numbers(device, 4, 16).requires_grad_()
    stream, positions = operations.target_stream("cosine"), torch.arange(4, device=device)
    hidden, massive = v.detach().flip(0)[None].to(torch.bfloat16), torch.arange(16, device=device) == 5
    with torch.no_grad():
        first, last = (operations.row_scaling(x, positions, massive) for x in (hidden, hidden.cos()))
        stream.add(hidden, positions, 0.5, first)
        stream.finish(hidden.cos(), positions, 0.5, v, last)
    gradient = _gradient(lambda: stream.loss(torch.ones(4, device=device)), v)
    return torch.cat([first.norm, first.factor, gradient.flatten()])


def _try_attention_mass(operations: Operations, device: torch.device) -> Tensor:
    query, key = _numbers(device, 2, 2, 1, 16, 16).to(torch.bfloat16)
    visual = torch.zeros(2, 16, dtype=torch.bool, device=device)
    visual[:, 2:6] = True
    tokens = MassTokens.of(~visual, visual, torch.ones_like(visual))
    return operations.attention_mass(query, key, scaling=0.25, tokens=tokens)


def _gradient(loss: Callable[[], Tensor], v: Tensor) -> Tensor:
    with torch.enable_grad():
        return torch.autograd.grad(loss(), v)[0]


TRIALS: dict[str, Callable[[Operations, torch.device], Tensor]] = {
    "vocab_kl": _try_vocab_kl,
    "direction_loss": _try_direction_loss,
    "row_scaling": _try_row_scaling,
    "attention_mass": _try_attention_mass,
}
