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
        trained, zero = lm_square > 0, torch.zeros_like(dot)
        along = torch.where(trained, dot.clamp_max(0) / lm_square, zero)  # times g_lm: what is taken out
        removed = dot.clamp_max(0) * along  # its energy
        lm, left = lm_square.sqrt(), (basic_square - removed).clamp_min(0).sqrt()
        most = self.rho * lm
        cap = torch.where(left > most, most / left, trained.double())

        sample = self.layout.sample
        factor_lm, factor_basic = (f.to(of_lm.dtype)[sample].unsqueeze(1) for f in (1 - cap * along, cap))
        joined = (of_lm * factor_lm).addcmul_(of_basic, factor_basic)

        samples = self.layout.samples_with_image
        measured = {
            "guard_conflict": torch.where(basic_square > 0, removed / basic_square, zero),
            "guard_ratio": torch.where(trained, basic_square.sqrt() / lm, zero),
            "guard_ratio_after": torch.where(trained, cap * left / lm, zero),
        }
        self.metrics = {name: (value.sum() / samples).float() for name, value in measured.items()}
        return joined

    def _sums(self, of_lm: Tensor, of_basic: Tensor) -> tuple[Tensor, ...]:
        """⟨g_lm, g_basic⟩, ‖g_lm‖², ‖g_basic‖² of each sample, [B] float64."""
        dtype = torch.promote_types(of_lm.dtype, torch.float32)
        norms = [torch.linalg.vector_norm(g, dim=1, dtype=dtype).double().square() for g in (of_lm, of_basic)]
        rows = torch.stack([(of_lm * of_basic).sum(dim=1, dtype=dtype).double(), *norms], dim=1)  # [M, 3]
        # One product sums every sample's rows: no atomics. In float64 it can't become TF32.
        samples = torch.arange(self.layout.patches.numel(), device=rows.device).unsqueeze(1)
        member = (self.layout.sample == samples).double()  # [B, M]
        return (member @ rows).unbind(dim=1)


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
