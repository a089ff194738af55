"""The optimizer's state by the rules of torch and bitsandbytes: their steps can't run on tensors without values."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from basic_lite.model.parts import Parts
from basic_lite.recipe.schema import TrainingSection
from basic_lite.rehearsal.ledger import Ledger
from basic_lite.training.optimizer import parameter_groups
from basic_lite.training.optimizer_state import STATE_BLOCK

# bitsandbytes 0.50: smaller parameters keep their state in 32 bit; two tables of 256 float32; smaller parameters aren't
# paged.
MIN_8BIT_ELEMENTS = 4096
TABLE_BYTES = 2 * 4 * 256
MIN_PAGED_ELEMENTS = 100_000


@dataclass(frozen=True)
class OptimizerState:
    """State tensors, and how many of their bytes CUDA may move to host memory."""

    tensors: list[Tensor]
    pageable_bytes: int


def optimizer_state(parts: Parts, section: TrainingSection, ledger: Ledger, tag: str) -> OptimizerState:
    """What ``make_optimizer`` holds after its first step, as fake tensors in the ledger."""
    projector = {id(p) for p in parts.projector.parameters()}
    eight_bit, paged = section.optimizer.endswith("8bit"), section.optimizer.startswith("paged_")
    tensors: list[Tensor] = []
    pageable = 0
    with ledger.fake_mode:
        for group in parameter_groups(parts, section):
            for p in group["params"]:
                small = eight_bit and id(p) not in projector and p.numel() >= MIN_8BIT_ELEMENTS
                pair = _pair(p, eight_bit=small, as_parameter=section.optimizer == "adamw")
                tensors += pair
                if paged and p.numel() >= MIN_PAGED_ELEMENTS:
                    pageable += sum(t.numel() * t.element_size() for t in pair)
                if small:
                    tensors += [torch.empty(-(-p.numel() // STATE_BLOCK)) for _ in range(2)]
        if eight_bit:
            tensors.append(torch.empty(TABLE_BYTES, dtype=torch.uint8))
    for tensor in tensors:
        ledger.enter(tensor, tag)
    return OptimizerState(tensors, pageable)


def _pair(p: nn.Parameter, *, eight_bit: bool, as_parameter: bool) -> list[Tensor]:
    """First and second moment. torch keeps them in the parameter's type, bitsandbytes in 32 or 8 bit."""
    dtype = torch.uint8 if eight_bit else p.dtype if as_parameter else torch.float32
    return [torch.empty(p.shape, dtype=dtype) for _ in range(2)]
