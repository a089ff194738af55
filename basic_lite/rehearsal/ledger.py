"""Counts every live byte of a training step that runs on fake tensors.

A fake tensor has shape, type and a storage with a size, but no memory. Run on them, a step makes and drops the
storages that it would make and drop on the card, so the sum of the live ones, taken after every operation, has
the step's true peak. Ids, labels and masks stay real: they are small, and which rows are labelled or visual depends
on their values.
"""

import functools
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import arg_tree_leaves, tree_leaves, tree_map

# Blocks of the CUDA caching allocator.
BLOCK_BYTES = 512
# The tag of storages that are not on the card. Pinned ones take the next power of two
# (ATen/core/CachingHostAllocator.h).
HOST = "host memory"
# Index tensors up to this size, or twice that of the batch's ids, are computed for real; larger results only have a
# size.
REAL_BYTES = 2**18

aten = torch.ops.aten
_INDEXED = {aten.index.Tensor: 1, aten.index_put_.default: 1, aten.index_put.default: 1}
_INDEXED |= {aten._unsafe_index.Tensor: 1, aten._index_put_impl_.default: 1}

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class _Run:
    """What a call of ``Ledger.once`` took on top of what there was before, in bytes by tag, and gave."""

    at_peak: dict[str, int]
    most: dict[str, int]
    result: Any


class Ledger(TorchDispatchMode):
    """A dispatch mode that runs operations on fake tensors and counts their storages.

    ``live`` is the sum of live storages on the card in bytes, ``peak`` its maximum, ``at_peak`` the sum by tag at that
    moment, ``most`` the maximum of each tag, whenever it was. A storage gets the tag that is current where it is made:
    see ``scope`` and ``base``. Those tagged ``HOST`` count for themselves alone.
    """

    def __init__(self, workspace: Callable[[Any, Sequence[Any]], int] | None = None) -> None:
        """
        Args:
            workspace: bytes that an operation takes inside itself and gives back, (operation, arguments) → bytes.
        """
        super().__init__()
        self.fake_mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.live = 0
        self.peak = 0
        self.by_tag: dict[str, int] = defaultdict(int)
        self.at_peak: dict[str, int] = {}
        self.most: dict[str, int] = {}
        self.base = "other"
        self.real_bytes = REAL_BYTES
        self.node_tags: dict[str, str] = {}  # name of an autograd node → tag of what its backward makes
        self.watch: Callable[[Any, Any, Any], None] | None = None  # sees each operation: it, its arguments, its result
        self._workspace = workspace
        self._scopes: list[str] = []
        self._storages: dict[int, tuple[weakref.ref[Any], int, str]] = {}
        self._runs: dict[Any, _Run] = {}

    @contextmanager
    def scope(self, tag: str) -> Iterator[None]:
        """Give ``tag`` to what is made inside."""
        self.push(tag)
        try:
            yield
        finally:
            self.pop()

    def push(self, tag: str) -> None:
        self._scopes.append(tag)

    def pop(self) -> None:
        self._scopes.pop()

    def wrap(self, tag: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function`` within ``scope(tag)``."""

        def scoped(*args: Any, **kwargs: Any) -> Any:
            with self.scope(tag):
                return function(*args, **kwargs)

        return scoped

    def retag(self, tensor: Tensor, tag: str) -> None:
        """Move a tensor's storage to another tag; one that isn't counted yet is entered."""
        key = tensor.untyped_storage()._cdata
        if key not in self._storages:
            self.enter(tensor, tag)
            return
        reference, size, old = self._storages[key]
        self._count(old, -size)
        self._count(tag, size)
        self._storages[key] = (reference, size, tag)

    def _tag(self) -> str:
        if self._scopes:
            return self._scopes[-1]
        node = torch._C._current_autograd_node()
        return self.base if node is None else self.node_tags.get(node.name(), self.base)

    def enter(self, tensor: Tensor, tag: str | None = None) -> None:
        """Count a tensor's storage, once, for as long as it lives."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._storages:
            return
        tag = tag or self._tag()
        size = storage.nbytes()
        size = 1 << (size - 1).bit_length() if tag == HOST and size else -(-size // BLOCK_BYTES) * BLOCK_BYTES
        self._storages[key] = (weakref.ref(storage, functools.partial(self._leave, key)), size, tag)
        self._count(tag, size)

    def _count(self, tag: str, size: int) -> None:
        if tag != HOST:
            self.live += size
        self.by_tag[tag] += size
        self.most[tag] = max(self.most.get(tag, 0), self.by_tag[tag])

    def _leave(self, key: int, _: Any) -> None:
        _, size, tag = self._storages.pop(key)
        self._count(tag, -size)

    def reset_peak(self) -> None:
        """Start to look for a new peak; what lives stays counted."""
        self.peak = 0
        self.at_peak = {}
        self.most = {tag: size for tag, size in self.by_tag.items() if size}
        self.note_peak()

    def once(self, key: tuple[Any, ...], run: Callable[[], _Result]) -> _Result:
        """Tensors of the sizes that ``run`` gives. It runs once for each key; its peak is counted each time.

        Args:
            key: all that decides which tensors are made, beside autocast and the current tag.
            run: leaves nothing behind but its result, a tree of tensors that it makes, without a graph.
        """
        key = *key, self._tag(), torch.is_autocast_enabled("cpu")
        if key not in self._runs:
            self._runs[key] = self._observed(run)
        seen = self._runs[key]
        self.most |= {tag: max(self.most.get(tag, 0), self.by_tag[tag] + n) for tag, n in seen.most.items()}
        self.note_peak(seen.at_peak)
        storages: dict[int, Tensor] = {}

        def copied(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            storage = leaf.untyped_storage()
            if storage._cdata not in storages:
                storages[storage._cdata] = torch.empty(storage.nbytes() // leaf.itemsize, dtype=leaf.dtype)
            return storages[storage._cdata].as_strided(leaf.shape, leaf.stride(), leaf.storage_offset())

        result: _Result = tree_map(copied, seen.result)
        return result

    def _observed(self, run: Callable[[], Any]) -> _Run:
        """Run and leave the books as they were: the result is kept, but no longer counted."""
        held, before = dict(self.by_tag), (self.peak, self.at_peak, self.most)
        self.peak, self.at_peak, self.most = 0, {}, {}
        result = run()
        at_peak = {tag: self.at_peak.get(tag, 0) - held.get(tag, 0) for tag in {*held, *self.at_peak} - {HOST}}
        seen = _Run(at_peak, {tag: n - held.get(tag, 0) for tag, n in self.most.items()}, result)
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and (key := leaf.untyped_storage()._cdata) in self._storages:
                self._leave(key, None)
        self.peak, self.at_peak, self.most = before
        return seen

    def note_peak(self, on_top: Mapping[str, int] | None = None) -> None:
        """Compare this moment, with some bytes by tag on top of what lives, with the peak so far."""
        on_top = on_top or {}
        size = self.live + sum(on_top.values())
        if size > self.peak:
            total = {tag: self.by_tag[tag] + on_top.get(tag, 0) for tag in [*{**self.by_tag, **on_top}]}
            self.peak, self.at_peak = size, {tag: n for tag, n in total.items() if n and tag != HOST}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.prim.device.default and isinstance(args[0], FakeTensor):
            return args[0].fake_device  # asked for at every turn, and no operation
        kwargs = kwargs or {}
        tensors = [leaf for leaf in arg_tree_leaves(*args, **kwargs) if isinstance(leaf, Tensor)]
        fake = any(isinstance(tensor, FakeTensor) for tensor in tensors)
        workspace = 0
        if tensors and not fake:
            out = tree_map(self._shrink, func(*args, **kwargs))
        else:
            if fake and func in _INDEXED:
                args = _with_row_numbers(args, _INDEXED[func])
            if fake and func is aten.masked_select.default:
                out = self._masked_select(*args)
            elif not fake and _small_integers(func, args, kwargs):
                out = func(*args, **kwargs)
            else:
                # The same as in `with self.fake_mode`, in a fifth less time.
                out = self.fake_mode.dispatch(func, types, args, kwargs)
            if self._workspace is not None:
                workspace = self._workspace(func, args)
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.enter(leaf)
        self.note_peak({self._tag(): workspace} if workspace else None)
        if self.watch is not None:
            self.watch(func, (args, kwargs), out)
        return out

    def _shrink(self, value: Any) -> Any:
        """Replace a real result that is too large to compute with by a fake one."""
        if not isinstance(value, Tensor) or value.untyped_storage().nbytes() <= self.real_bytes:
            return value
        with self.fake_mode:
            return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)

    def _masked_select(self, source: Tensor, mask: Tensor) -> Tensor:
        """Read the result's size from the mask, which is real."""
        count = _count(mask) * (torch.broadcast_shapes(source.shape, mask.shape).numel() // max(mask.numel(), 1))
        with self.fake_mode:
            return source.new_empty(count)


def fake_like(ledger: Ledger, tensor: Tensor, tag: str) -> Tensor:
    """A fake tensor with the size of ``tensor`` (which may be on the meta device), counted."""
    return fake(ledger, tensor.shape, tensor.dtype, tag)


def fake(ledger: Ledger, shape: Sequence[int], dtype: torch.dtype, tag: str) -> Tensor:
    """A fake tensor, counted, whether the ledger runs or not."""
    with ledger, ledger.scope(tag):
        return torch.empty(shape, dtype=dtype, device="cpu")


def sizes_of(*values: Any) -> tuple[Any, ...]:
    """Shape and type of tensors, other values as they are, for a key."""
    return tuple((value.shape, value.dtype) if isinstance(value, Tensor) else value for value in values)


def _small_integers(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether an operation without tensor arguments makes positions or ids, which are computed for real."""
    if func.namespace != "aten" or not func.overloadpacket.__name__.startswith("arange"):
        return False
    ends = [a for a in args if isinstance(a, int | float)]
    return kwargs.get("dtype") in (None, torch.int64, torch.int32) and max(ends, default=0) * 8 <= REAL_BYTES


def _with_row_numbers(args: tuple[Any, ...], place: int) -> tuple[Any, ...]:
    """Indices by mask become indices by number, as the device makes them, so that results have a known size."""
    indices: list[Any] = []
    for index in args[place]:
        is_mask = isinstance(index, Tensor) and index.dtype == torch.bool and not isinstance(index, FakeTensor)
        indices += index.nonzero(as_tuple=True) if is_mask else [index]
    return (*args[:place], indices, *args[place + 1 :])


def _count(mask: Tensor) -> int:
    """True elements; dimensions that only repeat are counted once and multiplied."""
    if isinstance(mask, FakeTensor):
        raise RuntimeError("a mask whose values decide a size must be made of real tensors in a rehearsal")
    repeats = 1
    for dimension, stride in enumerate(mask.stride()):
        if stride == 0 and mask.shape[dimension] > 1:
            repeats *= mask.shape[dimension]
            mask = mask.narrow(dimension, 0, 1)
    return int(mask.sum()) * repeats
