"""Show queries and keys to a watcher while the LLM's own attention runs unchanged.

transformers looks an attention function up by name at every call. While a watcher is there, the LLM's config names a
function of ours. It shows queries and keys to the watcher, then calls the function it stands for. Its mask function is
registered under the same name: without one, transformers hands over no mask, and padding is silently attended to.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from basic_lite.errors import UserError
from basic_lite.supervision.layout import Layout
from basic_lite_kernels.operations import Operations

Watcher = Callable[[nn.Module, Tensor, Tensor, dict[str, Any]], None]

PREFIX = "basic_lite_"
NO_ATTENTION = "set supervision.token_weights to a number (Σa, spread evenly), which reads no attention"

# Attention modules being watched right now, and by whom. Empty outside ``WatchedAttention.watching``.
_watchers: dict[nn.Module, Watcher] = {}


@contextmanager
def named(configs: list[PreTrainedConfig], name: str) -> Iterator[None]:
    """Let ``configs`` name the attention ``name`` for a while."""
    before = [config._attn_implementation for config in configs]
    for config in configs:
        config._attn_implementation = name
    try:
        yield
    finally:
        for config, old in zip(configs, before, strict=True):
            config._attn_implementation = old


def is_watched(config: PreTrainedConfig) -> bool:
    """Whether attention of this config is watched right now."""
    return str(config._attn_implementation).startswith(PREFIX)


def _watched(original: str) -> Callable[..., tuple[Tensor, Tensor | None]]:
    def attention(
        module: nn.Module, query: Tensor, key: Tensor, *rest: Any, **options: Any
    ) -> tuple[Tensor, Tensor | None]:
        watcher = _watchers.get(module)
        if watcher is not None:
            watcher(module, query, key, options)
        if original == "eager":
            return eager_attention(module)(module, query, key, *rest, **options)
        if original == "sdpa":
            return ALL_ATTENTION_FUNCTIONS[original](module, query, key, *rest, **options)
        # flash-attention reads the name from the config again, and must find the one it knows.
        with named([module.config], original):
            return ALL_ATTENTION_FUNCTIONS[original](module, query, key, *rest, **options)

    return attention


class WatchedAttention:
    """The attention inside some decoder layers, looked up once: an LLM with LoRA has thousands of modules.

    Only the language model's configs are renamed while it is watched, never the vision tower's.

    Args:
        language_model: whose ``layers`` they are. Its attention modules stay what they are.
    """

    def __init__(self, language_model: nn.Module, layers: Sequence[nn.Module]) -> None:
        self._configs = attention_configs(language_model)
        self._modules = [module for layer in layers for module in layer.modules()]

    @contextmanager
    def watching(self, watcher: Watcher) -> Iterator[None]:
        """Call ``watcher(module, query, key, options)`` for each attention, for a while.

        ``query`` is [B, H, T, d], ``key`` [B, H_kv, T, d], ``options`` the keyword arguments the model passes (scaling,
        sliding_window, softcap, …).
        """
        original = self._configs[0]._attn_implementation
        name = PREFIX + original
        if name not in ALL_ATTENTION_FUNCTIONS:
            AttentionInterface.register(name, _watched(original))
            AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[original])
        _watchers.update(dict.fromkeys(self._modules, watcher))
        try:
            with named(self._configs, name):
                yield
        finally:
            for module in self._modules:
                _watchers.pop(module, None)


def eager_attention(module: nn.Module) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """Eager attention has no entry in transformers' table: each modelling file brings its own."""
    files = [sys.modules[kind.__module__] for kind in type(module).__mro__]
    function: Callable[..., tuple[Tensor, Tensor | None]] = next(
        file.eager_attention_forward for file in files if hasattr(file, "eager_attention_forward")
    )
    return function


def check_attention(language_model: nn.Module, count: int) -> None:
    """Refuse, before a run starts, attention whose weights can't be recomputed from queries and keys.

    Raises:
        UserError: the first ``count`` layers use anything but causal full or sliding-window softmax
            attention, or an implementation that no attention function can be put in front of.
    """
    config = attention_configs(language_model)[0]
    name = config._attn_implementation
    if name != "eager" and (name not in ALL_ATTENTION_FUNCTIONS or name not in ALL_MASK_ATTENTION_FUNCTIONS):
        raise UserError(
            f"the LLM's attention {name!r} has no attention and mask function registered with transformers, so its "
            f"weights can't be read; set model.attention to sdpa, eager or flash_attention_2, or {NO_ATTENTION}"
        )
    kinds = set((getattr(config, "layer_types", None) or [])[:count]) - {"full_attention", "sliding_attention"}
    if kinds or not getattr(config, "is_causal", True) or getattr(config, "use_bidirectional_attention", False):
        found = ", ".join(sorted(kinds)) or "attention that is not causal"
        raise UserError(
            f"the LLM {type(language_model).__name__} uses {found}, whose weights can't be read; {NO_ATTENTION}"
        )


def check_options(module: nn.Module, options: dict[str, Any]) -> None:
    """Refuse options that change the softmax in a way attention mass doesn't know.

    Raises:
        UserError: attention sinks or a position bias.
    """
    odd = [name for name in ("s_aux", "sinks", "position_bias") if options.get(name) is not None]
    if odd:
        raise UserError(
            f"{type(module).__name__} adds {', '.join(odd)} to its attention, which can't be read; {NO_ATTENTION}"
        )


def attention_mass(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    options: dict[str, Any],
    layout: Layout,
    operations: Operations,
    out: Tensor | None = None,
) -> Tensor:
    """What the text of ``layout`` pays to each position, [B, T], summed over text tokens and meaned over heads.

    Args:
        module, query, key, options: as ``WatchedAttention.watching`` hands them over.
        out: it is added to this, in place.

    Raises:
        UserError: see ``check_options``.
    """
    check_options(module, options)
    return operations.attention_mass(query, key, tokens=layout.mass_tokens, out=out, **softmax_options(query, options))


def softmax_options(query: Tensor, options: dict[str, Any]) -> dict[str, Any]:
    """What of a model's options changes its softmax."""
    scaling = options.get("scaling")
    return {
        "scaling": query.shape[-1] ** -0.5 if scaling is None else scaling,
        "sliding_window": options.get("sliding_window"),
        "softcap": options.get("softcap"),
    }


def attention_configs(language_model: nn.Module) -> list[PreTrainedConfig]:
    """The distinct configs that the language model and its modules hold, the model's own first."""
    configs = [getattr(module, "config", None) for module in language_model.modules()]
    return list({id(config): config for config in configs if isinstance(config, PreTrainedConfig)}.values())
