"""Tensors of a run on disk, as safetensors."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from basic_lite.errors import UserError
from basic_lite.training.files import give_usual_rights


def save_tensors(state: Mapping[str, Tensor], path: Path) -> None:
    """Write a safetensors file. It knows no shared memory, so a tensor that is there twice is written twice."""
    seen: set[int] = set()
    written: dict[str, Tensor] = {}
    for name, tensor in state.items():
        tensor = tensor.detach().cpu().contiguous()
        address = tensor.untyped_storage().data_ptr()
        written[name] = tensor.clone() if address in seen else tensor
        seen.add(address)
    save_file(written, str(path), {"format": "pt"})
    give_usual_rights(path)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file to the CPU.

    Raises:
        UserError: it can't be read, or a number in it isn't finite.
    """
    try:
        state = load_file(str(path))
    except (SafetensorError, OSError, ValueError, KeyError) as error:  # a foreign head may name types of its own
        raise UserError(
            f"{path} is no readable safetensors file ({error}); take another checkpoint (--checkpoint with --resume)"
        ) from error
    broken = [name for name, one in state.items() if one.is_floating_point() and not bool(torch.isfinite(one).all())]
    if broken:
        raise UserError(
            f"{path}: {broken[0]} has numbers that aren't finite (NaN or infinity), so nothing can be computed with "
            "it; take another checkpoint, or train it again"
        )
    return state
