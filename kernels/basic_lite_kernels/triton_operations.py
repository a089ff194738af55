"""The operations by Triton kernels: strictly, or with eager code for inputs that a kernel doesn't take."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from basic_lite_kernels import attention_mass, direction_loss, row_scaling, vocab_kl
from basic_lite_kernels.eager_attention_mass import attention_mass as eager_attention_mass
from basic_lite_kernels.eager_direction_loss import EagerTargetStream
from basic_lite_kernels.eager_row_scaling import row_scaling as eager_row_scaling
from basic_lite_kernels.eager_vocab_kl import vocab_kl as eager_vocab_kl
from basic_lite_kernels.signatures import Kind, Operations, RowScaling, TargetStream

TRITON = Operations(
    "triton",
    direction_loss.TritonTargetStream,
    row_scaling.row_scaling,
    vocab_kl.vocab_kl,
    attention_mass.attention_mass,
)


def triton_or_eager(say: Callable[[str], None]) -> Operations:
    """The kernels for inputs that they take, eager code for others. ``say`` tells the user each reason once."""
    either = _Either(say)
    return Operations("triton", either.target_stream, either.row_scaling, either.vocab_kl, either.attention_mass)


class _Either:
    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._said: set[tuple[str, str]] = set()

    def target_stream(self, kind: Kind | None) -> TargetStream:
        return _EitherStream(kind, self)

    def row_scaling(self, hidden: Tensor, positions: Tensor, massive: Tensor | None = None) -> RowScaling:
        if self.takes("the target's norm (row_scaling)", direction_loss.supports(hidden)):
            return row_scaling.row_scaling(hidden, positions, massive)
        return eager_row_scaling(hidden, positions, massive)

    def vocab_kl(self, v: Tensor, target: Tensor, table: Tensor, weights: Tensor, **options: Any) -> Tensor:
        if self.takes("SDS (vocab_kl)", vocab_kl.supports(v, target, table)):
            return vocab_kl.vocab_kl(v, target, table, weights, **options)
        return eager_vocab_kl(v, target, table, weights, **options)

    def attention_mass(self, query: Tensor, key: Tensor, **options: Any) -> Tensor:
        if self.takes("the patch weights (attention_mass)", attention_mass.supports(query, key)):
            return attention_mass.attention_mass(query, key, **options)
        return eager_attention_mass(query, key, **options)

    def takes(self, operation: str, reason: str | None) -> bool:
        """Whether the kernel can do it; if not, the user reads why."""
        if reason is not None and (operation, reason) not in self._said:
            self._said.add((operation, reason))
            self._say(f"note: {operation} runs as plain PyTorch, not as a Triton kernel: {reason}")
        return reason is None


class _EitherStream:
    """The first layer decides for the whole stream."""

    def __init__(self, kind: Kind | None, either: _Either) -> None:
        self._kind, self._either = kind, either
        self._chosen: TargetStream | None = None

    @property
    def target(self) -> Tensor | None:
        return None if self._chosen is None else self._chosen.target

    def _stream(self, hidden: Tensor) -> TargetStream:
        if self._chosen is None:
            takes = self._either.takes("DAS (direction_loss)", direction_loss.supports(hidden))
            self._chosen = (direction_loss.TritonTargetStream if takes else EagerTargetStream)(self._kind)
        return self._chosen

    def add(self, hidden: Tensor, positions: Tensor, weight: float, scaling: RowScaling | None = None) -> None:
        self._stream(hidden).add(hidden, positions, weight, scaling)

    def finish(
        self, hidden: Tensor, positions: Tensor, weight: float, v: Tensor, scaling: RowScaling | None = None
    ) -> None:
        self._stream(hidden).finish(hidden, positions, weight, v, scaling)

    def loss(self, weights: Tensor) -> Tensor:
        if self._chosen is None:
            raise RuntimeError("a target stream has a loss once it is finished")
        return self._chosen.loss(weights)
