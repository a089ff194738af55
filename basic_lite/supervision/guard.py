"""The gradient guard at v: it limits the harm that BASIC can do to the language-modelling loss, to first order at v.

v goes to the LLM and to BASIC's losses through one function, so its backward has both gradients at hand before they
reach the projector. For each sample, with g_lm and g_basic as vectors over all its visual tokens:

1. Where ⟨g_basic, g_lm⟩ < 0, the component of g_basic along g_lm is taken out. It is one-sided: what agrees stays.
2. ‖g_basic‖ is capped at ρ ‖g_lm‖.

The projector then gets g_lm + g_basic. Both gradients are divided by counts of the whole step, so their ratio in a
sample is the same whatever the micro-batch. It is ours, not the paper's. It looks at v alone, one step at a time.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from basic_lite.supervision.layout import Layout

# In place of a divisor 0, where what is divided is 0 or the quotient is capped.
TINY = torch.finfo(torch.float64).tiny


@dataclass
class Guard:
    """The guard of one forward and of its backward."""

    rho: float
    layout: Layout
    # Filled by the backward, float32 scalars on the device: means over this batch's samples with an image.
    metrics: dict[str, Tensor] = field(default_factory=dict)

    def split(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """v [..., D] for the LLM and for BASIC's losses: the same values and types, guarded in the backward."""
        for_lm, for_basic = _Guarded.apply(v, self)
        return for_lm, for_basic

    def join(self, of_lm: Tensor, of_basic: Tensor) -> Tensor:
        """The gradient for the projector, [M, D], of the LM loss's and BASIC's; neither is changed.

        Sets ``metrics``: ``guard_conflict``, the share of BASIC's energy ‖g_basic‖² that opposed and was taken out;
        ``guard_ratio`` and ``guard_ratio_after``, ‖g_basic‖/‖g_lm‖ before anything and in the end. A sample whose g_lm
        is 0 (no labelled token) gets nothing of BASIC, and counts as 0 in all three.

        Peak extra bytes: 4·M·D (float32) + 8·B·M, nothing [M, D] but the result.
        """
        dot, lm_square, basic_square = self._sums(of_lm, of_basic)
        opposed = dot.clamp_max(0)
        along = torch.where(lm_square > 0, opposed / lm_square, lm_square)  # times g_lm: what is taken out
        removed = opposed * along  # its energy
        lm, left = lm_square.sqrt(), (basic_square - removed).clamp_min(0).sqrt()
        cap = (self.rho * lm / left.clamp_min(TINY)).clamp_max(1)  # 0 where g_lm is

        factors = torch.stack([1 - cap * along, cap]).to(of_lm.dtype).index_select(1, self.layout.sample)  # [2, M]
        factor_lm, factor_basic = factors.unsqueeze(2)
        joined = (of_lm * factor_lm).addcmul_(of_basic, factor_basic)

        parts, wholes = torch.stack([removed, basic_square.sqrt(), cap * left]), torch.stack([basic_square, lm, lm])
        measured = torch.where(wholes > 0, parts / wholes, wholes).sum(dim=1) / self.layout.samples_with_image
        names = ("guard_conflict", "guard_ratio", "guard_ratio_after")
        self.metrics = dict(zip(names, measured.float().unbind(), strict=True))
        return joined

    def _sums(self, of_lm: Tensor, of_basic: Tensor) -> tuple[Tensor, ...]:
        """⟨g_lm, g_basic⟩, ‖g_lm‖², ‖g_basic‖² of each sample, [B] float64."""
        dtype = torch.promote_types(of_lm.dtype, torch.float32)
        norms = [torch.linalg.vector_norm(g, dim=1, dtype=dtype) for g in (of_lm, of_basic)]
        rows = torch.stack([(of_lm * of_basic).sum(dim=1, dtype=dtype), *norms], dim=1).double()  # [M, 3]
        rows[:, 1:].square_()
        # One product sums every sample's rows: no atomics. In float64 it can't become TF32.
        return (self.layout.members.double() @ rows).unbind(dim=1)


class _Guarded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, v: Tensor, guard: Guard) -> tuple[Tensor, Tensor]:
        ctx.guard = guard
        ctx.set_materialize_grads(False)
        return v.view_as(v), v.view_as(v)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_lm: Tensor | None, of_basic: Tensor | None) -> tuple[Tensor | None, None]:
        if of_basic is None:
            return of_lm, None
        if of_lm is None:
            of_lm = torch.zeros_like(of_basic)
        joined = ctx.guard.join(of_lm.flatten(0, -2), of_basic.flatten(0, -2))
        return joined.view_as(of_basic), None
