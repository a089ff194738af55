"""What an optimizer has gathered for each parameter, to a file and back. Rates and betas are the recipe's."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

# What torch and bitsandbytes call a parameter's second moment, and bitsandbytes the factors of its 8-bit blocks.
_NEVER_NEGATIVE = ("exp_avg_sq", "state2", "absmax1", "absmax2")
# Numbers of an 8-bit state that have a factor in float32.
STATE_BLOCK = 256


def groups_of(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Which parameters are in which group, by number: what a state must agree with."""
    return [{"name": one["name"], "params": one["params"]} for one in optimizer.state_dict()["param_groups"]]


def flatten(state: Mapping[Any, Any], prefix: str = "") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Nested optimizer state as tensors and plain values, by path: ``3/exp_avg``."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for key, value in state.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            inner_tensors, inner_numbers = flatten(value, f"{path}/")
            tensors |= inner_tensors
            numbers |= inner_numbers
        elif isinstance(value, Tensor):
            tensors[path] = value
        else:
            numbers[path] = value
    return tensors, numbers


def restore(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any], *, steps: int
) -> None:
    """Give an optimizer the state that ``flatten`` has made flat. All but the state stays as it is.

    Args:
        steps: the most updates that a parameter can have had.

    Raises:
        ValueError: it isn't the state of this optimizer's parameters.
    """
    state = _unflatten({**tensors, **numbers})
    own = [
        (number, index, parameter)
        for number, group in enumerate(optimizer.param_groups)
        for index, parameter in enumerate(group["params"])
    ]
    if state.keys() != set(range(len(own))):
        raise ValueError(f"it is of {len(state):,} parameters, and {len(own):,} are trained")
    for name, (group, index, parameter) in enumerate(own):
        entries = dict(_leaves(state[name]))
        _require_form(name, entries, _form(optimizer, group, index, parameter))
        _require_count(name, entries["step"], steps)
        if table := [one for one in ("qmap1", "qmap2") if one in entries and not _is_own_table(entries[one], one)]:
            raise ValueError(f"parameter {name} has another {table[0]} than bitsandbytes'")
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _leaves(state: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    """Names and values, whatever bitsandbytes wraps some of them in."""
    for name, value in state.items():
        if isinstance(value, dict):
            yield from _leaves(value)
        else:
            yield name, value


def _form(
    optimizer: torch.optim.Optimizer, group: int, index: int, parameter: Tensor
) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and type of each tensor that the optimizer keeps for a parameter, besides its count of updates."""
    shape = tuple(parameter.shape)
    if isinstance(optimizer, torch.optim.AdamW):
        return dict.fromkeys(("exp_avg", "exp_avg_sq"), (shape, parameter.dtype))
    config = optimizer.get_config(group, index, optimizer.param_groups[group])
    if config["optim_bits"] == 32 or parameter.numel() < config["min_8bit_size"]:
        return dict.fromkeys(("state1", "state2"), (shape, torch.float32))
    blocks = -(-parameter.numel() // STATE_BLOCK)
    return {
        **dict.fromkeys(("state1", "state2"), (shape, torch.uint8)),
        **dict.fromkeys(("qmap1", "qmap2"), ((256,), torch.float32)),
        **dict.fromkeys(("absmax1", "absmax2"), ((blocks,), torch.float32)),
    }


def _require_form(name: int, entries: Mapping[str, Any], form: Mapping[str, tuple[tuple[int, ...], Any]]) -> None:
    if entries.keys() != {"step", *form}:
        raise ValueError(f"parameter {name} has {', '.join(sorted(entries))}, not step, {', '.join(form)}")
    for one, (shape, dtype) in form.items():
        found = entries[one]
        if not isinstance(found, Tensor) or tuple(found.shape) != shape:
            raise ValueError(f"parameter {name} has another shape in {one}")
        if found.dtype != dtype:
            raise ValueError(f"parameter {name} has {one} of another type, {found.dtype}")
        if one in _NEVER_NEGATIVE and found.is_floating_point() and found.numel() and float(found.min()) < 0:
            raise ValueError(f"parameter {name} has numbers below 0 in {one}")


def _require_count(name: int, given: Any, most: int) -> None:
    """torch counts updates in a tensor of one number, bitsandbytes in a Python integer."""
    count = given.item() if isinstance(given, Tensor) and given.shape == () else given
    whole = isinstance(count, int | float) and not isinstance(count, bool) and math.isfinite(count) and not count % 1
    if not whole or not 1 <= count <= most:
        raise ValueError(f"parameter {name} has had {count!r:.40} updates, and the run {most}")


def _is_own_table(found: Tensor, name: str) -> bool:
    from bitsandbytes.functional import create_dynamic_map

    return torch.equal(found.cpu(), create_dynamic_map(signed=name == "qmap1").cpu())


def _unflatten(values: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    """The reverse of ``flatten``; the first part of a path is a parameter's number."""
    state: dict[int, dict[str, Any]] = {}
    for path, value in values.items():
        index, *parts, last = path.split("/")
        node = state.setdefault(int(index), {})
        for part in parts:
            node = node.setdefault(part, {})
        node[last] = value
    return state
