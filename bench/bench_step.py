"""A whole training step with BASIC off, on, and done the naive way: time, peak memory, and where the time goes.

One process, the same model and batch: forward, backward, clipping and the optimizer's step, the three ways taking
turns. The model is ``midsize``: 7B's proportions at a size that a CPU can train, so that BASIC has about the share of a
step's FLOPs that it has in 7B (``flops`` counts both).

Symbols: B batch · T sequence · N visual tokens of a sample · n text queries of a sample · D hidden size · V vocabulary
· L decoder layers · K supervised layers.
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from basic_lite.console import quiet_libraries
from basic_lite.model.adapt import leave_casts_to_autocast
from basic_lite.model.load import Loaded
from basic_lite.recipe.schema import Recipe
from basic_lite.run import load_for_training, preflight, supervise
from basic_lite.supervision import Supervision, SupervisionLosses
from basic_lite.supervision.layout import Layout, find_layout
from basic_lite.train.arguments import use_autocast
from basic_lite.train.optimizer import make_optimizer
from basic_lite.train.step import micro_batch_loss
from basic_lite_kernels import naive
from basic_lite_kernels.operations import Operations, TargetStream
from bench import measure, midsize, naive_step
from bench.report import Report, StepRow

OFF, ON, NAIVE = "off", "on", "naive"


@dataclass(frozen=True)
class Shape:
    size: midsize.Size
    samples: int  # B, an image each
    seconds: float  # that each way is timed
    tolerance: float  # of on's loss and projector gradient against the naive way's, relative

    def __str__(self) -> str:
        size = self.size
        return (
            f"{self.samples}×{size.tokens} tokens, {size.tokens_per_image} of an image · "
            f"D {size.hidden}, MLP {size.mlp}, L {size.layers}, V {size.vocabulary}"
        )


SHAPES = {
    "tiny": [Shape(midsize.TINY, 2, 0.02, 1e-4)],
    "cpu": [Shape(midsize.MID, 1, 8.0, 1e-4)],
    # In bf16 the naive way's v is rounded where the model hands it out; ours is taken before.
    "gpu": [Shape(midsize.MID, 8, 5.0, 5e-2)],
}


# ---- what is counted


@dataclass(frozen=True)
class Dimensions:
    """What FLOPs are counted from; ``linears``: (in, out) of each linear layer of one decoder layer."""

    B: int
    T: int
    N: int
    n: int  # text queries of a sample
    labelled: int  # of a sample
    D: int
    V: int
    L: int
    K: int
    linears: tuple[tuple[int, int], ...]
    rank: int
    tower_weights: int  # of its linear layers
    tower_tokens: int
    projector_weights: int


def flops(d: Dimensions) -> dict[str, float]:
    """A step's products by part, 2 FLOPs a multiply-add; element-wise work isn't counted.

    Under checkpointing a frozen linear layer is multiplied three times (forward, again, gradient of its input), an
    adapter's matrices four times (and their own gradients); attention's two products twice forward and four more
    backward, and counted in full, not causal. The vision tower runs forward only, the projector isn't recomputed.
    """
    tokens, weights, adapters = d.B * d.T, sum(i * o for i, o in d.linears), sum(i + o for i, o in d.linears)
    visual = d.B * d.N
    return {
        "LLM linears": 6.0 * tokens * weights * d.L,
        "LoRA": 8.0 * tokens * d.rank * adapters * d.L,
        "attention": 16.0 * d.B * d.T**2 * d.D * d.L,
        "LM loss": 4.0 * d.B * d.labelled * d.D * d.V,
        "vision tower": 2.0 * d.B * d.tower_tokens * d.tower_weights,
        "projector": 6.0 * visual * d.projector_weights,
        "attention mass": 2.0 * d.B * d.n * d.T * d.D * d.K,
        "SDS": 6.0 * visual * d.D * d.V,
    }


def basic_share(counted: dict[str, float]) -> float:
    """BASIC's products over those of the step without it."""
    basic = counted["SDS"] + counted["attention mass"]
    return basic / (sum(counted.values()) - basic)


def llama_linears(hidden: int, mlp: int) -> tuple[tuple[int, int], ...]:
    """A Llama layer's: four of attention, three of the MLP."""
    return ((hidden, hidden),) * 4 + ((hidden, mlp), (hidden, mlp), (mlp, hidden))


# LLaVA-1.5 7B on a sample of 1024 tokens, rank 128, half of its text supervised: what the mid-size model stands for.
SEVEN_B = Dimensions(
    B=1, T=1024, N=576, n=413, labelled=256, D=4096, V=32000, L=32, K=16, linears=llama_linears(4096, 11008), rank=128,
    tower_weights=23 * 12 * 1024**2, tower_tokens=577, projector_weights=1024 * 4096 + 4096**2,
)  # fmt: skip


# ---- the step


@dataclass
class Stage:
    """A loaded model with a batch on the device, ready to step."""

    recipe: Recipe
    loaded: Loaded
    supervision: Supervision
    optimizer: torch.optim.Optimizer
    batch: dict[str, Tensor]
    trainable: list[nn.Parameter]
    autocast: bool
    device: torch.device
    naive: Any = naive  # who computes the naive way's operations

    @classmethod
    def make(cls, shape: Shape, device: torch.device) -> Stage:
        """NF4, LoRA on all linear layers, checkpointing, weights drawn from a seed; files are gone when it returns."""
        quiet_libraries()
        with tempfile.TemporaryDirectory() as folder:
            parts = midsize.write(Path(folder), shape.size, samples=shape.samples + 2)
            recipe = midsize.stage2(parts, device=device.type, micro_batch=shape.samples, global_batch=shape.samples)
            return cls.of(recipe, device)

    @classmethod
    def of(cls, recipe: Recipe, device: torch.device) -> Stage:
        """A recipe's model, and as a batch the samples after the first, which ``midsize`` writes shorter."""
        frontend, data = preflight(recipe, device, lambda text: None)
        loaded = load_for_training(recipe, device, frontend, lambda text: None)
        samples = [data.train[i] for i in range(1, 1 + recipe.training.micro_batch)]
        batch = {name: tensor.to(device) for name, tensor in data.collator(samples).items()}
        autocast = use_autocast(recipe, device)
        if autocast:
            leave_casts_to_autocast(loaded.parts)
        supervision = supervise(recipe, loaded, lambda text: None)
        assert supervision is not None
        loaded.model.train()
        loaded.parts.vision_tower.eval()
        optimizer = make_optimizer(loaded.parts, recipe.training, device)
        trainable = [p for p in loaded.model.parameters() if p.requires_grad]
        return cls(recipe, loaded, supervision, optimizer, batch, trainable, autocast, device)

    def loss(self, way: str) -> Tensor:
        """The loss of one of the ways, as the trainer has it in a step of one micro-batch."""
        language_model = self.loaded.parts.language_model
        language_model.set_attn_implementation("eager" if way == NAIVE else self.recipe.model.attention)

        def model(**inputs: Any) -> Any:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
                return self.loaded.model(**inputs)

        step = partial(naive_step.micro_batch_loss, operations=self.naive) if way == NAIVE else micro_batch_loss
        return step(
            model,
            self.loaded.parts,
            None if way == OFF else self.supervision,
            self.batch,
            lambdas=self.supervision.lambdas(0, 0),
            num_items_in_batch=int((self.batch["labels"][:, 1:] != -100).sum()),
            samples_with_image=self.batch["input_ids"].shape[0],
            detailed=True,
        ).loss

    def run(self, way: str, clock: Breakdown | None = None) -> None:
        """One step. Gradients are dropped at its end, so that each step finds what the one before found."""
        mark = clock.base if clock is not None else lambda name: None
        mark(OTHER)
        loss = self.loss(way)
        mark(LOSS_BACKWARD)
        loss.backward()
        del loss
        mark(OPTIMIZER)
        torch.nn.utils.clip_grad_norm_(self.trainable, self.recipe.training.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        mark(OTHER)

    def gradient(self, way: str) -> tuple[Tensor, Tensor]:
        """Loss, and the projector's gradient as one vector; weights stay as they are."""
        loss = self.loss(way)
        loss.backward()
        gradients = [p.grad for p in self.loaded.parts.projector.parameters()]
        found = torch.cat([g.flatten() for g in gradients if g is not None]).clone()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach(), found

    def dimensions(self) -> Dimensions:
        """Read from the model and the batch, not from the shape."""
        parts, config = self.loaded.parts, self.loaded.model.config.text_config
        layout = find_layout(self.batch, parts.image_token_id, "all")
        B, T = self.batch["input_ids"].shape
        tower = parts.vision_tower
        linears = [m.weight for m in tower.modules() if isinstance(m, nn.Linear)]
        return Dimensions(
            B=B, T=T, N=layout.positions.numel() // B, n=int(layout.text.sum()) // B,
            labelled=int((self.batch["labels"][:, 1:] != -100).sum()) // B,
            D=config.hidden_size, V=self.supervision.vocabulary.rows, L=config.num_hidden_layers,
            K=self.supervision.layers, linears=llama_linears(config.hidden_size, config.intermediate_size),
            rank=self.recipe.lora.rank, tower_weights=sum(w.numel() for w in linears),
            tower_tokens=layout.positions.numel() // B + 1,
            projector_weights=sum(p.numel() for p in parts.projector.parameters() if p.ndim > 1),
        )  # fmt: skip


# ---- where the time goes

OTHER = "embeddings, masks, the rest"
VISION, PROJECTOR, LLM = "vision tower", "projector", "LLM forward"
CAPTURE, MASS, DAS, SDS = "BASIC: capture (v̂)", "BASIC: attention mass", "BASIC: DAS", "BASIC: SDS"
MEASURES = "BASIC: roles, measures"
LM_LOSS, LOSS_BACKWARD = "LM loss", "losses, backward"
LLM_BACKWARD, PROJECTOR_BACKWARD, OPTIMIZER = "LLM backward", "projector backward", "clip, optimizer"
ORDER = (
    VISION, PROJECTOR, LLM, CAPTURE, MASS, LM_LOSS, DAS, SDS, MEASURES, LOSS_BACKWARD, LLM_BACKWARD, PROJECTOR_BACKWARD,
    OPTIMIZER, OTHER,
)  # fmt: skip
NAIVE_OPERATIONS = {
    "refined_target": CAPTURE,
    "column_sums": MASS,
    "direction_loss": DAS,
    "vocab_kl": SDS,
}


@dataclass
class Breakdown:
    """Time by part, each part without those inside it. Of a GPU it waits at every change: its sum is above a step's."""

    device: torch.device
    taken_ms: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    _stack: list[str] = field(default_factory=lambda: [OTHER])
    _since: float = 0.0

    def start(self) -> None:
        self._stack = [OTHER]
        self._since = measure.now(self.device)

    def _book(self) -> None:
        now = measure.now(self.device)
        self.taken_ms[self._stack[-1]] += 1e3 * (now - self._since)
        self._since = now

    def base(self, name: str) -> None:
        """What goes on where nothing else is named, from here on."""
        self._book()
        self._stack[0] = name

    def enter(self, name: str) -> None:
        self._book()
        self._stack.append(name)

    def leave(self) -> None:
        self._book()
        self._stack.pop()

    def wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, with its time booked under ``name``."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            self.enter(name)
            try:
                return function(*args, **kwargs)
            finally:
                self.leave()

        return timed


class TimedStream:
    """A target stream under a clock; the pass over layer K is counted as capture, whose bytes it moves."""

    def __init__(self, stream: TargetStream, clock: Breakdown) -> None:
        self._stream = stream
        self.add = clock.wrap(CAPTURE, stream.add)
        self.finish = clock.wrap(CAPTURE, stream.finish)
        self.loss = clock.wrap(DAS, stream.loss)

    @property
    def target(self) -> Tensor | None:
        return self._stream.target


class TimedSupervision(Supervision):
    """A stage's supervision under a clock."""

    def __init__(self, stage: Stage, clock: Breakdown) -> None:
        given, self._clock = stage.supervision, clock
        super().__init__(
            given.parts,
            given.settings,
            vocabulary_ids=stage.loaded.vocabulary_ids,
            operations=Operations(
                given.operations.name,
                target_stream=lambda kind: TimedStream(given.operations.target_stream(kind), clock),
                vocab_kl=clock.wrap(SDS, given.operations.vocab_kl),
                attention_mass=clock.wrap(MASS, given.operations.attention_mass),
            ),
            special_ids=given.special_ids,
        )

    def layout(self, *args: Any, **options: Any) -> Layout:
        return self._clock.wrap(MEASURES, super().layout)(*args, **options)

    def losses(self, *args: Any, **options: Any) -> SupervisionLosses:
        return self._clock.wrap(MEASURES, super().losses)(*args, **options)


@contextmanager
def watched(stage: Stage, clock: Breakdown) -> Iterator[Stage]:
    """A stage whose steps ``clock`` sees the parts of."""
    parts = stage.loaded.parts
    hooks: list[Any] = []

    def part(module: nn.Module, name: str) -> None:
        hooks.append(module.register_forward_pre_hook(lambda *_: clock.enter(name)))
        hooks.append(module.register_forward_hook(lambda *_: clock.leave()))

    part(parts.vision_tower, VISION)
    part(parts.projector, PROJECTOR)
    part(parts.language_model, LLM)

    def entering(_module: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
        """The gradient of its input is the last that the LLM's backward makes."""
        kwargs["inputs_embeds"].register_hook(lambda gradient: clock.base(PROJECTOR_BACKWARD))

    def left(_module: nn.Module, _args: Any, out: Any) -> None:
        clock.base(LM_LOSS)
        out.last_hidden_state.register_hook(lambda gradient: clock.base(LLM_BACKWARD))

    hooks.append(parts.language_model.register_forward_pre_hook(entering, with_kwargs=True))
    hooks.append(parts.language_model.register_forward_hook(left))

    naive_parts = {name: clock.wrap(label, getattr(stage.naive, name)) for name, label in NAIVE_OPERATIONS.items()}
    supervision = TimedSupervision(stage, clock)
    supervision.vocabulary.mean_norm()  # once a run, so none of a step's time
    try:
        yield dataclasses.replace(stage, supervision=supervision, naive=SimpleNamespace(**naive_parts))
    finally:
        for hook in hooks:
            hook.remove()


# ---- the bench


def run_watched(stage: Stage, way: str, taken: dict[str, list[dict[str, float]]]) -> None:
    """One step; where its time went is appended to ``taken``."""
    clock = Breakdown(stage.device)
    with watched(stage, clock) as seen:
        clock.start()
        seen.run(way, clock)
    taken[way].append(dict(clock.taken_ms))


def test_step(shape: Shape, report: Report, device: torch.device) -> None:
    stage = Stage.make(shape, device)
    counted = flops(stage.dimensions())
    ways = (OFF, ON, NAIVE)

    # Right first: the two ways of BASIC are one step.
    (loss, gradient), (naive_loss, naive_gradient) = stage.gradient(ON), stage.gradient(NAIVE)
    errors = {
        ON: (measure.relative(loss, naive_loss), measure.relative(gradient, naive_gradient)),
        OFF: (None, None),
        NAIVE: (None, None),
    }
    for what, error in zip(("loss", "projector gradient"), errors[ON], strict=True):
        assert error is not None and error <= shape.tolerance, f"{what}: on and naive differ by {error:.2g}; not timed"

    stage.run(OFF)  # makes the optimizer's state
    peaks = {way: measure.peak_bytes(lambda way=way: stage.run(way), device) for way in ways}
    taken: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    seen = {way: partial(run_watched, stage, way, taken) for way in ways}
    if device.type == "cuda":
        # Looking at a part waits for the device, which a step doesn't; so that is done apart.
        runs = measure.take_turns({way: partial(stage.run, way) for way in ways}, device, shape.seconds)
        for _ in range(measure.FEWEST_REPEATS):
            for work in seen.values():
                work()
    else:
        runs = measure.take_turns(seen, device, shape.seconds)

    for way in ways:
        timing = measure.quantiles(runs[way])
        # Of each round by itself, so that a machine that slows down in between does not count.
        ratios = [mine / off for (mine, _), (off, _) in zip(runs[way], runs[OFF], strict=True)]
        report.steps.append(
            StepRow(
                shape=str(shape),
                way=way,
                **dataclasses.asdict(timing),
                time_over_off=statistics.median(ratios),
                lowest_over_off=min(ratios),
                highest_over_off=max(ratios),
                peak_bytes=peaks[way],
                adds_bytes=peaks[way] - peaks[OFF],
                loss_error=errors[way][0],
                gradient_error=errors[way][1],
                parts_ms={
                    name: statistics.median(step.get(name, 0.0) for step in taken[way])
                    for name in ORDER
                    if any(name in step for step in taken[way])
                },
                flops=counted,
                basic_share_of_flops=basic_share(counted),
                basic_share_of_flops_in_7b=basic_share(flops(SEVEN_B)),
            )
        )


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
