"""Whether an LLM attends as its queries and keys say: tried before a run, beside the LLM's own weights.

BASIC recomputes the weights a_i from queries and keys. An LLM may add to its scores, or hand over another mask than the
causal one, and say so nowhere: then the weights would be wrong in silence.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from basic_lite.errors import UserError
from basic_lite.supervision.attention import (
    NO_ATTENTION,
    PREFIX,
    attention_configs,
    check_options,
    eager_attention,
    named,
    softmax_options,
)
from basic_lite.supervision.layout import find_layout
from basic_lite.supervision.taps import evaluating
from basic_lite_kernels.eager_attention_mass import attention_mass

# Of each of the two texts that it is tried on. Sums of some ten weights agree so far in 16 bit.
_TOKENS, _ROUNDING = 12, 0.02
_NAME = f"{PREFIX}tried"


# What looks at an attention module's weights. transformers keeps our function for good; by it, it must keep no model.
_trials: dict[nn.Module, Callable[[nn.Module, Tensor, Tensor, dict[str, Any], Tensor], None]] = {}


@torch.no_grad()
def try_attention(language_model: nn.Module, count: int) -> None:
    """Compare, on two short texts, the weights that are computed from queries and keys with the LLM's own.

    Raises:
        UserError: they differ in one of the first ``count`` layers.
    """
    table = language_model.get_input_embeddings().weight
    ids = torch.linspace(0, len(table) - 1, 2 * _TOKENS).long().view(2, -1)
    mask, visual = torch.ones_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    mask[1, -3:], visual[:, 1:5] = 0, True
    layout = find_layout({"input_ids": ids, "attention_mask": mask, "visual": visual}, -1, "all").to(table.device)
    number = {module: h for h, layer in enumerate(language_model.layers[:count], 1) for module in layer.modules()}

    def compare(module: nn.Module, query: Tensor, key: Tensor, options: dict[str, Any], weights: Tensor) -> None:
        check_options(module, options)
        ours = attention_mass(query, key, tokens=layout.mass_tokens, **softmax_options(query, options))
        own = (weights.float().mean(dim=1) * layout.text.unsqueeze(2)).sum(dim=1) * layout.visual
        if not torch.allclose(ours.float(), own, rtol=_ROUNDING, atol=_ROUNDING):
            raise UserError(
                f"the LLM {type(language_model).__name__} doesn't attend as its queries and keys say: in layer "
                f"{number[module]} a text's first tokens get {_few(own)} in all, and by them {_few(ours)}; "
                f"{NO_ATTENTION}"
            )

    AttentionInterface.register(_NAME, _tried)
    AttentionMaskInterface.register(_NAME, ALL_MASK_ATTENTION_FUNCTIONS["eager"])
    _trials.update(dict.fromkeys(number, compare))
    try:
        with named(attention_configs(language_model), _NAME), evaluating(language_model):
            language_model(input_ids=ids.to(table.device), attention_mask=mask.to(table.device), use_cache=False)
    finally:
        for module in number:
            _trials.pop(module, None)


def _tried(module: nn.Module, query: Tensor, key: Tensor, *rest: Any, **options: Any) -> tuple[Tensor, Tensor | None]:
    out, weights = eager_attention(module)(module, query, key, *rest, **options)
    if module in _trials and weights is not None:
        _trials[module](module, query, key, options, weights)
    return out, weights


def _few(mass: Tensor) -> str:
    return ", ".join(f"{value:.3f}" for value in mass[0, 1:5].tolist())
