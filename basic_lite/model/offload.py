"""What the card doesn't need between its uses rests in pinned host memory: layer inputs, the vision tower.

Every copy is asynchronous and on the stream that computes. So it keeps its place among the kernels, and no event is
needed: memory that is copied out is overwritten only after the copy, and what is copied in is read only after that
copy. autograd runs the backward of a node on the stream of its forward. A pinned buffer is not handed out again before
the copies that use it are done: PyTorch records an event on it with each copy (``ATen/cuda/CachingHostAllocator.h``,
"currently invoked by at::native::copy_kernel_cuda").

A second stream would let copies overlap with the forward, but its events and ``record_stream`` go wrong unseen.
transformers (``offload`` of its gradient checkpointing) and torch (``save_on_cpu``) do the same for layer inputs. They
pin memory even where there is no card, so neither tests nor rehearsals could run them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from basic_lite.errors import NoMemory, is_out_of_memory
from basic_lite.model.parts import Parts
from basic_lite.recipe.rules import recomputed_layers
from basic_lite.recipe.schema import Recipe
from basic_lite.sizes import MIB, size_text

# Smaller tensors stay: the copies would cost more time than the memory is worth.
MIN_BYTES = MIB


def empty_host(like: Tensor, *, pinned: bool) -> Tensor:
    """Host memory for a tensor's values.

    Raises:
        MemoryError: the host has too little that can be pinned.
    """
    try:
        return torch.empty_like(like, device="cpu", pin_memory=pinned, requires_grad=False)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        size = size_text(like.numel() * like.element_size())
        raise MemoryError(f"{size} of pinned host memory could not be had: {error}") from error


@dataclass(frozen=True)
class Offloaded:
    """A saved tensor's values on the host, and the device that they go back to."""

    host: Tensor
    device: torch.device


class ActivationOffload:
    """Keep on the host what the LLM's recomputed layers save for the backward.

    That is each one's input [B, T, D]: within such a layer, checkpoint's own hooks come first, in the forward and when
    it is recomputed. What comes after them stays on the device: all that the other layers keep, and the head's.

    A tensor is offloaded if it is floating-point, on the device, contiguous, of at least ``MIN_BYTES``, and shares no
    memory with a parameter. Contiguous, because a copy then has the layout of what was saved, and so the backward runs
    the same kernels and gives the same bits. A tensor that is saved twice is copied twice: its address can't tell that
    it is the same one, since memory is used anew.

    Args:
        language_model: gets forward hooks.
        recomputed: its first decoder layers, those that are recomputed; one at least.
        device: the device that computes. Host memory is pinned if that is a GPU.
    """

    def __init__(self, language_model: nn.Module, recomputed: Sequence[nn.Module], device: torch.device) -> None:
        self.device = device
        self._offloading = False
        self._hooks: saved_tensors_hooks | None = None
        self._weights: set[int] = set()
        self._handles = [
            language_model.register_forward_pre_hook(self._enter),
            # Checkpoint's hooks lie on top of ours while a layer runs, so ours can only go when the model is left.
            recomputed[-1].register_forward_hook(self._after_recomputed),
            language_model.register_forward_hook(self._leave, always_call=True),
        ]

    def remove(self) -> None:
        """Offload nothing any more."""
        for handle in self._handles:
            handle.remove()

    def _enter(self, language_model: nn.Module, _: Any) -> None:
        if torch.is_grad_enabled() and language_model.training:  # else there is no checkpointing
            self._weights = {p.untyped_storage()._cdata for p in language_model.parameters()}
            self._offloading = True
            self._hooks = saved_tensors_hooks(self._pack, self._unpack)
            self._hooks.__enter__()

    def _after_recomputed(self, *_: Any) -> None:
        self._offloading = False

    def _leave(self, *_: Any) -> None:
        self._offloading = False
        if self._hooks is not None:
            self._hooks.__exit__()
            self._hooks = None

    def to_host(self, tensor: Tensor) -> Tensor:
        """Start a copy to the host."""
        host = empty_host(tensor, pinned=self.device.type == "cuda")
        return host.copy_(tensor.detach(), non_blocking=True)

    def _pack(self, tensor: Tensor) -> Tensor | Offloaded:
        offload = (
            self._offloading
            and tensor.is_floating_point()
            and tensor.device.type == self.device.type
            and tensor.numel() * tensor.element_size() >= MIN_BYTES
            and tensor.is_contiguous()
            and tensor.untyped_storage()._cdata not in self._weights
        )
        return Offloaded(self.to_host(tensor), tensor.device) if offload else tensor

    def _unpack(self, packed: Tensor | Offloaded) -> Tensor:
        return _copy_to(packed.host, packed.device) if isinstance(packed, Offloaded) else packed


class RestOnHost:
    """Keep a frozen module's weights on the host, and on the device only while its forward runs.

    Parameters stay the same objects; their data is exchanged. Where something else moves the whole model to the device,
    the weights go along until the end of the next forward. Buffers stay on the device.

    accelerate's ``cpu_offload`` leaves parameters on the meta device between uses, where no model can be moved, and
    copies one by one, waiting for each.

    Args:
        module: gets forward hooks; its weights must not change any more.
        device: the device that computes. Host memory is pinned if that is a GPU.

    Raises:
        ValueError: a parameter is trained.
        NoMemory: the host has too little memory that can be pinned.
    """

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self.device = device
        self.parameters = list(module.parameters())
        if any(p.requires_grad for p in self.parameters):
            raise ValueError("weights that are trained can't rest on the host: only frozen ones stay what they are")
        try:
            self.host = [empty_host(p, pinned=device.type == "cuda").copy_(p) for p in self.parameters]
        except MemoryError as error:
            raise NoMemory(f"{error}; set model.tower_on_host to false") from error
        self.leave()
        module.register_forward_pre_hook(lambda *_: self.enter())
        module.register_forward_hook(lambda *_: self.leave(), always_call=True)

    def to_device(self, host: Tensor) -> Tensor:
        """Start a copy to the device."""
        return _copy_to(host, self.device)

    def enter(self) -> None:
        """Bring the weights to the device."""
        try:
            for parameter, host in zip(self.parameters, self.host, strict=True):
                parameter.data = self.to_device(host)
        except BaseException:
            self.leave()
            raise

    def leave(self) -> None:
        """Give the device's memory back."""
        for parameter, host in zip(self.parameters, self.host, strict=True):
            parameter.data = host


def offload(parts: Parts, recipe: Recipe, device: torch.device) -> ActivationOffload | None:
    """Offload what the recipe asks for; gives what keeps layer inputs on the host, None where they stay."""
    if recipe.model.tower_on_host:
        RestOnHost(parts.vision_tower, device)  # its hooks on the tower hold it
    if not recipe.training.offload_activations:
        return None
    count = recomputed_layers(recipe.training.gradient_checkpointing, len(parts.layers))
    return ActivationOffload(parts.language_model, parts.layers[:count], device)


def _copy_to(host: Tensor, device: torch.device) -> Tensor:
    return torch.empty_like(host, device=device).copy_(host, non_blocking=True)
