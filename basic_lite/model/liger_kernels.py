"""Which of Liger's kernels are used (https://github.com/linkedin/Liger-Kernel), and where they can run.

Of its library the functions alone: its own patching changes transformers' classes, and with them every model of the
process. ``model.liger`` puts them into one model.
"""

import functools
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from basic_lite.errors import UserError
from basic_lite_kernels.operations import device_obstacle
from basic_lite_kernels.triton_support import interpreted

KEY = "training.use_liger_kernel"
# A kernel that is right differs from plain PyTorch by rounding.
TRIAL_ERROR = 1e-3


@dataclass(frozen=True)
class LigerKernels:
    """Functions of Liger's names and meaning. What is said to be in place overwrites what it got."""

    rms_norm: Callable[..., Tensor]  # x [..., D], weight [D], eps, offset, casting mode → [..., D]
    rope: Callable[..., tuple[Tensor, Tensor]]  # q [B, H, T, d], k [B, H_kv, T, d], cos, sin [·, T, d] → both, in place
    swiglu: Callable[..., Tensor]  # gate, up [..., I] → [..., I]; the backward is in place
    geglu: Callable[..., Tensor]  # the same with GELU (tanh)
    swiglu_halves: Callable[..., Tensor]  # gate and up in one [..., 2·I] → [..., I]


def load_liger() -> LigerKernels:
    """Liger's kernels. Needs triton, so it isn't imported where they aren't used."""
    from liger_kernel.ops import LigerFusedGateUpSiLUMulFunction
    from liger_kernel.transformers import functional as liger

    def rms_norm(x: Tensor, weight: Tensor, eps: float, offset: float, casting: str) -> Tensor:
        # Not in place: the gradient that comes in also goes to the residual stream.
        out: Tensor = liger.liger_rms_norm(x, weight, eps, offset, casting, in_place=False)
        return out

    def swiglu_halves(both: Tensor) -> Tensor:
        out: Tensor = LigerFusedGateUpSiLUMulFunction.apply(both.flatten(0, -2))  # its gradient has two dimensions
        return out.unflatten(0, both.shape[:-1])

    return LigerKernels(rms_norm, liger.liger_rope, liger.liger_swiglu, liger.liger_geglu, swiglu_halves)


def choose_liger(setting: bool | Literal["auto"], device: torch.device, say: Callable[[str], object]) -> bool:
    """Whether a model on ``device`` gets Liger's kernels; ``auto``: where Triton runs.

    Args:
        setting: the recipe's key.
        say: tells the user why a GPU doesn't get them.

    Raises:
        UserError: they are asked for and can't run here.
    """
    if setting is False:
        return False
    obstacle = _obstacle(device, by_name=setting is True)
    if obstacle is not None and setting is True:
        raise UserError(f"{KEY} is true, but Liger's kernels can't run here: {obstacle}; set {KEY}=auto, or false")
    if obstacle is not None and device.type == "cuda":
        say(f"note: Liger's kernels aren't used for the LLM: {obstacle}")
    return obstacle is None


def _obstacle(device: torch.device, *, by_name: bool) -> str | None:
    if interpreted():  # it is for tests
        return None if by_name else "TRITON_INTERPRET is set, which interprets kernels on the CPU"
    found = device_obstacle(device)
    if found is None and importlib.util.find_spec("liger_kernel") is None:
        found = "liger-kernel isn't installed (pip install liger-kernel)"
    return found or _trial_obstacle(device)


@functools.cache
def _trial_obstacle(device: torch.device) -> str | None:
    """What goes wrong when each kernel is tried on something small; None if nothing."""
    for name in TRIALS:
        try:
            with torch.cuda.device(device):
                ours, truth = (TRIALS[name](kernels, device) for kernels in (load_liger(), PLAIN))
                error = float((ours - truth).norm() / truth.norm())
        except Exception as failure:  # a library's error of any type means the same here, and the user reads it
            return f"a trial of its {name} failed ({type(failure).__name__}: {failure})"
        if not error < TRIAL_ERROR:
            return f"a trial of its {name} was wrong by {error:.3g} of its result"
    return None


def _rms_norm(x: Tensor, weight: Tensor, eps: float, offset: float, casting: str) -> Tensor:
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    if casting == "llama":
        return weight * wide.to(x.dtype)
    return (wide * (offset + weight.float())).to(x.dtype)


def _rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    return _rotated(q, cos.unsqueeze(1), sin.unsqueeze(1)), _rotated(k, cos.unsqueeze(1), sin.unsqueeze(1))


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    turned, rest = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    first, second = turned.chunk(2, dim=-1)
    turned = turned * cos + torch.cat((-second, first), dim=-1) * sin
    return torch.cat((turned, rest), dim=-1) if rest.shape[-1] else turned


def _swiglu(gate: Tensor, up: Tensor) -> Tensor:
    return functional.silu(gate) * up


def _geglu(gate: Tensor, up: Tensor) -> Tensor:
    return functional.gelu(gate, approximate="tanh") * up


def _swiglu_halves(both: Tensor) -> Tensor:
    gate, up = both.chunk(2, dim=-1)
    return up * functional.silu(gate)


PLAIN = LigerKernels(_rms_norm, _rope, _swiglu, _geglu, _swiglu_halves)
"""What the kernels compute, in transformers' own steps: the same bits."""


def _both_ways(work: Callable[[Tensor], Tensor], device: torch.device, *shape: int) -> Tensor:
    """The result for numbers of a shape, and the gradient."""
    count = torch.Size(shape).numel()
    with torch.enable_grad():
        x = torch.linspace(-2, 2, count, device=device).sin().view(shape).requires_grad_()
        out = work(x + 0)  # what is overwritten isn't the leaf
        (gradient,) = torch.autograd.grad(out, x, out.detach().cos())
    return torch.cat([out.detach().flatten(), gradient.flatten()])


def _try_norm(offset: float, casting: str) -> Callable[[LigerKernels, torch.device], Tensor]:
    def tried(kernels: LigerKernels, device: torch.device) -> Tensor:
        weight = torch.linspace(0.5, 1.5, 16, device=device)
        return _both_ways(lambda x: kernels.rms_norm(x, weight, 1e-6, offset, casting), device, 3, 5, 16)

    return tried


def _try_rope(kernels: LigerKernels, device: torch.device) -> Tensor:
    angles = torch.linspace(0, 3, 5 * 8, device=device).view(1, 5, 8).repeat(1, 1, 2)

    def turned(x: Tensor) -> Tensor:  # [3, 5, 6, 16]: four heads of q, two of k
        q, k = (heads.contiguous().transpose(1, 2) for heads in (x[:, :, :4], x[:, :, 4:]))
        return torch.cat(kernels.rope(q, k, angles.cos(), angles.sin()), dim=1)

    return _both_ways(turned, device, 3, 5, 6, 16)


def _try_gate(name: str) -> Callable[[LigerKernels, torch.device], Tensor]:
    def tried(kernels: LigerKernels, device: torch.device) -> Tensor:
        if name == "swiglu_halves":
            return _both_ways(kernels.swiglu_halves, device, 3, 5, 32)
        gated: Callable[..., Tensor] = getattr(kernels, name)
        return _both_ways(lambda x: gated(*(half.contiguous() for half in x.chunk(2, dim=-1))), device, 3, 5, 32)

    return tried


TRIALS: dict[str, Callable[[LigerKernels, torch.device], Tensor]] = {
    "RMSNorm": _try_norm(0.0, "llama"),
    "RMSNorm (Gemma)": _try_norm(1.0, "gemma"),
    "RoPE": _try_rope,
    "SwiGLU": _try_gate("swiglu"),
    "SwiGLU (halves)": _try_gate("swiglu_halves"),
    "GEGLU": _try_gate("geglu"),
}
