"""Where a step's time goes: a clock around the parts of a model and around BASIC's operations.

A run takes it for a few steps, the bench for all of its steps.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from basic_lite.model.parts import Parts
from basic_lite_kernels.operations import Kind, Operations, TargetStream
from basic_lite_kernels.signatures import MakeTargetStream

OTHER = "embeddings, masks, the rest"
VISION, PROJECTOR, LLM = "vision tower", "projector", "LLM forward"
CAPTURE, MASS, DAS, SDS = "BASIC: capture (v̂)", "BASIC: attention mass", "BASIC: DAS", "BASIC: SDS"
SCALING, MEASURES = "BASIC: row scaling", "BASIC: roles, measures"
LM_LOSS, LOSS_BACKWARD = "LM loss", "losses, backward"
LLM_BACKWARD, PROJECTOR_BACKWARD, OPTIMIZER = "LLM backward", "projector backward", "clip, optimizer"
DATA, BETWEEN = "waiting for data", "between steps"


class Clock:
    """Moments, and the milliseconds between them: events on a GPU's stream; on a CPU the time that it is told."""

    def __init__(self, device: torch.device, cpu_seconds: Callable[[], float] = time.process_time) -> None:
        self.device, self.cpu_seconds = device, cpu_seconds

    def mark(self) -> Any:
        if self.device.type != "cuda":
            return self.cpu_seconds()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def wait(self) -> None:
        """Wait until marks can be read."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def ms(self, start: Any, end: Any) -> float:
        return float(start.elapsed_time(end) if self.device.type == "cuda" else 1e3 * (end - start))


class Breakdown:
    """Time by part, each part without those inside it.

    It only marks moments while a step runs, so nothing waits for a GPU; ``take`` reads them. It runs from ``start`` to
    ``stop``. When it doesn't run, it marks nothing, and what it wraps is only called.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.running = False
        self._stack: list[str] = []
        self._marks: list[tuple[str, Any]] = []  # the part that runs from each moment on

    def start(self, name: str = OTHER) -> None:
        """Forget all marks and start again; ``name``: what runs first."""
        self.running = True
        self._stack = [name]
        self._marks = [(name, self.clock.mark())]

    def stop(self) -> None:
        """Forget all marks, and mark no more."""
        self.running, self._stack, self._marks = False, [], []

    def _mark(self) -> None:
        self._marks.append((self._stack[-1], self.clock.mark()))

    def base(self, name: str) -> None:
        """Name the time that no part names, from here on."""
        if self.running:
            self._stack[0] = name
            self._mark()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Mark nothing inside this context: all of its time is the part's that runs before it."""
        was, self.running = self.running, False
        yield
        self.running = was and bool(self._stack)  # ``stop`` may have been called

    def enter(self, name: str) -> None:
        if self.running:
            self._stack.append(name)
            self._mark()

    def leave(self) -> None:
        if self.running:
            self._stack.pop()
            self._mark()

    def take(self) -> dict[str, float]:
        """Milliseconds by part since ``start``, once all of it has run; it starts again."""
        self._mark()
        self.clock.wait()
        taken: dict[str, float] = defaultdict(float)
        for (name, begin), (_, end) in zip(self._marks, self._marks[1:], strict=False):
            taken[name] += self.clock.ms(begin, end)
        self.start()
        return dict(taken)

    def wrap(self, name: str, function: Callable[..., Any], *, backward: bool = False) -> Callable[..., Any]:
        """``function``, with its time under ``name``; ``backward``: that of its result's autograd node too."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            if not self.running:
                return function(*args, **kwargs)
            self.enter(name)
            try:
                out = function(*args, **kwargs)
            finally:
                self.leave()
            if backward and isinstance(out, Tensor) and out.grad_fn is not None:
                out.grad_fn.register_prehook(lambda _: self.enter(name))
                out.grad_fn.register_hook(lambda *_: self.leave())
            return out

        return timed

    def operations(self, given: Operations) -> Operations:
        """BASIC's operations with a clock around each, forward and backward."""
        return Operations(
            given.name,
            target_stream=self._stream_of(given),
            row_scaling=self.wrap(SCALING, given.row_scaling),
            vocab_kl=self.wrap(SDS, given.vocab_kl, backward=True),
            attention_mass=self.wrap(MASS, given.attention_mass),
        )

    def _stream_of(self, given: Operations) -> MakeTargetStream:
        def stream(kind: Kind | None) -> TargetStream:
            made = given.target_stream(kind)
            return TimedStream(made, self) if self.running else made

        return stream

    @contextmanager
    def watching(self, parts: Parts, *, basic: bool) -> Iterator[None]:
        """Time the model's parts apart inside this context; ``basic``: what is outside the model is BASIC's."""
        hooks = ExitStack()

        def part(module: nn.Module, name: str) -> None:
            hooks.enter_context(module.register_forward_pre_hook(lambda *_: self.enter(name)))
            hooks.enter_context(module.register_forward_hook(lambda *_: self.leave()))

        def entering(_module: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
            """The gradient of its input is the last that the LLM's backward makes."""
            if kwargs["inputs_embeds"].requires_grad:  # not in a batch of text alone, nor without gradients
                kwargs["inputs_embeds"].register_hook(lambda gradient: self.base(PROJECTOR_BACKWARD))

        def left(_module: nn.Module, _args: Any, out: Any) -> None:
            self.base(LM_LOSS)
            if out.last_hidden_state.requires_grad:
                out.last_hidden_state.register_hook(lambda gradient: self.base(LLM_BACKWARD))

        if basic:
            self.base(MEASURES)
            hooks.enter_context(parts.model.register_forward_pre_hook(lambda *_: self.base(OTHER)))
            hooks.enter_context(parts.model.register_forward_hook(lambda *_: self.base(MEASURES)))
        part(parts.vision_tower, VISION)
        part(parts.projector, PROJECTOR)
        part(parts.language_model, LLM)
        hooks.enter_context(parts.language_model.register_forward_pre_hook(entering, with_kwargs=True))
        hooks.enter_context(parts.language_model.register_forward_hook(left))
        with hooks:
            yield


class TimedStream:
    """A target stream under a clock. The pass over layer K is counted as capture, whose bytes it moves."""

    def __init__(self, stream: TargetStream, breakdown: Breakdown) -> None:
        self._stream = stream
        self.add = breakdown.wrap(CAPTURE, stream.add)
        self.finish = breakdown.wrap(CAPTURE, stream.finish)
        self.loss = breakdown.wrap(DAS, stream.loss, backward=True)

    @property
    def target(self) -> Tensor | None:
        """v̂ so far."""
        return self._stream.target
