"""One training step of a recipe on fake tensors: the project's own code, every allocation counted."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from basic_lite.model.adapt import recompute
from basic_lite.model.frontend import Frontend
from basic_lite.model.parts import Parts
from basic_lite.recipe.rules import recomputed_layers
from basic_lite.recipe.schema import Recipe
from basic_lite.rehearsal.batch import Shape, longest_batch
from basic_lite.rehearsal.build import TaggedActivations, fake_model
from basic_lite.rehearsal.ledger import HOST, REAL_BYTES, Ledger, fake, fake_like
from basic_lite.rehearsal.look import Look, look_is_made, rehearse_look, samples_at_once
from basic_lite.rehearsal.machine import Machine
from basic_lite.rehearsal.optimizer import optimizer_state
from basic_lite.rehearsal.repeat import (
    OnceTower,
    RepeatedLayer,
    few_positions,
    few_rows,
    few_samples,
    few_sizes,
    repeated_layers,
)
from basic_lite.supervision import Supervision, SupervisionLosses
from basic_lite.training.assembly import basic_is_on
from basic_lite.training.step import Autocast, StepCounts, TrainStep
from basic_lite_kernels.eager_attention_mass import CHUNK_ELEMENTS, attention_mass
from basic_lite_kernels.eager_direction_loss import EagerTargetStream, capture_layer, direction_loss
from basic_lite_kernels.eager_row_scaling import row_scaling
from basic_lite_kernels.eager_vocab_kl import vocab_kl
from basic_lite_kernels.operations import Operations
from basic_lite_kernels.signatures import MeasureRows

GRADIENTS, OPTIMIZER, BATCH = "gradients", "optimizer", "batch"
VISION, PROJECTION = "vision tower's activations", "projector's activations"
KEPT, LAYER, LM_LOSS, BASIC = "activations kept", "largest layer's transients", "LM loss", "BASIC"


@dataclass(frozen=True)
class Rehearsal:
    """What a step needs; bytes. ``by_part`` sums to ``peak_bytes``; ``most_by_part`` has each part's own maximum."""

    shape: Shape
    recomputed: int  # decoder layers that run again in the backward, the first ones
    layers: int  # all of them
    machine: Machine
    by_part: dict[str, int]
    most_by_part: dict[str, int]
    peak_bytes: int  # of all tensors at once
    forward_peak_bytes: int
    pageable_bytes: int  # optimizer state that CUDA may move to host memory while it isn't used
    host_bytes: int  # most pinned host memory at once: offloaded activations, the vision tower
    before_peak_bytes: int = 0  # of the forward before the step that `token_weights: uniform` needs; 0: there is none
    look: Look | None = None  # at BASIC's premise, between two steps; None: the recipe makes none

    @property
    def look_is_larger(self) -> bool:
        """Whether a look at the premise needs more than a step does."""
        return self.look is not None and self.look.peak_bytes > self.peak_bytes

    @property
    def needed_bytes(self) -> int:
        """The larger peak of step and look, with the allowance for context and fragmentation, no page on the host."""
        most = self.look.peak_bytes if self.look is not None and self.look_is_larger else self.peak_bytes
        return most + self.machine.allowance_bytes

    @property
    def least_bytes(self) -> int:
        """``needed_bytes`` without the optimizer's pages, which then wait on the host."""
        return self.needed_bytes - self.pageable_bytes


class Rehearser:
    """A recipe's model on fake tensors, ready for rehearsals of several shapes."""

    def __init__(
        self,
        recipe: Recipe,
        frontend: Frontend,
        machine: Machine,
        *,
        basic: bool = True,
        in_full: bool = False,
        step: type[TrainStep] = TrainStep,
    ) -> None:
        """
        Args:
            basic: False leaves BASIC out, to see what it adds.
            in_full: compute everything where repeats would do (see ``repeat``): the same result, a good deal later.
            step: another way to the same loss. What repeats is known of the project's own way alone, so any other
                needs ``in_full``.

        Raises:
            ValueError: another step that takes short cuts.
        """
        if step is not TrainStep and not in_full:
            raise ValueError(f"layers repeat one another in TrainStep; {step.__name__} needs in_full=True")
        self.in_full = in_full
        self.recipe, self.frontend, self.machine = recipe, frontend, machine
        self.ledger = Ledger(machine.workspace)
        self.loaded = fake_model(recipe, frontend, machine, self.ledger)
        self.parts = self.loaded.parts
        self.supervision = self._supervision() if basic else None
        self.state = optimizer_state(self.parts, recipe.training, self.ledger, OPTIMIZER)
        self._looks: dict[Shape, Look] = {}
        if not in_full:
            self.parts.model.model.vision_tower = OnceTower(self.parts.vision_tower, self.ledger)
        autocast = partial(torch.autocast, "cpu", torch.bfloat16, cache_enabled=False)  # as ``autocast_of``
        self._autocast: Autocast = autocast if machine.autocast else nullcontext
        self.step = step(self.parts, self.supervision, device=torch.device("cpu"), autocast=self._autocast)
        _watch(self.parts, self.ledger)

    @contextmanager
    def _recomputing(self, count: int, *, offload: bool) -> Iterator[None]:
        """The layers as they are in a run that recomputes so many; afterwards as they were."""
        parts, ledger = self.parts, self.ledger
        recompute(parts, count)
        with ExitStack() as undo:
            if offload and count:
                offloading = TaggedActivations(parts.language_model, parts.layers[:count], ledger)
                undo.callback(offloading.remove)
            if not self.in_full:
                repeated = repeated_layers(parts, ledger, self.supervision, recomputed=count, tag=KEPT)
                undo.enter_context(repeated)
            for index, layer in enumerate(parts.layers):
                for handle in _watch_layer(layer, ledger, LAYER if index < count else KEPT):
                    undo.callback(handle.remove)
            yield

    def rehearse(
        self, shape: Shape | None = None, *, recomputed: int | None = None, offload: bool | None = None
    ) -> Rehearsal:
        """Run one micro-batch of a step, with everything in memory that training holds.

        That is: the optimizer's state of earlier steps and, where micro-batches accumulate, the gradients of earlier
        ones. The model's forward runs with BASIC's taps open, then come the losses and the backward. Clipping and the
        optimizer's step, after it, work in place and take nothing more.

        Args:
            shape: the micro-batch's; None: the recipe's, at its maximum length.
            recomputed: decoder layers that run again in the backward; None: as many as the recipe says.
            offload: whether their inputs wait on the host; None: as the recipe says.
        """
        if recomputed is None:
            recomputed = recomputed_layers(self.recipe.training.gradient_checkpointing, len(self.parts.layers))
        if offload is None:
            offload = self.recipe.training.offload_activations
        with self._recomputing(recomputed, offload=offload):
            return self._rehearse(shape or Shape.of(self.recipe), recomputed)

    def _rehearse(self, shape: Shape, recomputed: int) -> Rehearsal:
        ledger, step = self.ledger, self.step
        step.drop_gradients()
        look = self._look(shape)
        ledger.reset_peak()
        lambdas = self.supervision.lambdas(0, 0) if self.supervision is not None else (0.0, 0.0)
        batch = self._batch(shape)
        counts = StepCounts.of([batch], self.frontend.image_token_id).times(shape.accumulation)
        with ledger:
            ledger.base = KEPT
            mean_mass = step.mean_mass([batch], counts, lambdas)
        before_peak = ledger.peak if mean_mass is not None else 0
        if shape.accumulation > 1:
            self._make_gradients()
        with ledger:
            ledger.base = KEPT
            loss = step.loss(batch, counts, lambdas, mean_mass=mean_mass, detailed=True).loss
            batch.clear()
            forward_peak = ledger.peak
            ledger.base = LM_LOSS
            loss.backward()
        most = dict(ledger.most)
        host = most.pop(HOST, 0)
        return Rehearsal(
            shape=shape,
            recomputed=recomputed,
            layers=len(self.parts.layers),
            machine=self.machine,
            by_part=dict(sorted(ledger.at_peak.items(), key=lambda item: -item[1])),
            most_by_part=most,
            peak_bytes=ledger.peak,
            forward_peak_bytes=forward_peak,
            pageable_bytes=self.state.pageable_bytes,
            host_bytes=host,
            before_peak_bytes=before_peak,
            look=look,
        )

    def _make_gradients(self) -> None:
        repeated = [layer for layer in self.parts.layers if isinstance(layer, RepeatedLayer)]
        for layer in repeated:
            layer.make_gradients()
        theirs = {id(p) for layer in repeated for p in layer.parameters()}
        for parameter in self.step.trainable:
            if id(parameter) not in theirs:
                parameter.grad = fake_like(self.ledger, parameter, GRADIENTS)

    def _look(self, step: Shape) -> Look | None:
        """The look of a recipe whose step has this shape."""
        recipe = self.recipe
        if self.supervision is None or not self.supervision.active or not look_is_made(recipe):
            return None
        shape = Shape(samples_at_once(recipe, step.samples), step.tokens, step.images, 1)
        if shape not in self._looks:
            self._looks[shape] = rehearse_look(
                recipe, self.supervision, self.ledger, self._batch(shape), self._autocast(), cuda=self.machine.cuda
            )
        return self._looks[shape]

    def _batch(self, shape: Shape) -> dict[str, Tensor]:
        """The longest batch, its pixels fake."""
        inputs = longest_batch(self.frontend, shape)
        self.ledger.real_bytes = max(REAL_BYTES, 2 * inputs["input_ids"].nbytes)
        size = self.frontend.config.vision_config.image_size
        pixels = shape.samples * shape.images, 3, size, size
        inputs["pixel_values"] = fake(self.ledger, pixels, torch.float32, BATCH)
        for tensor in inputs.values():
            self.ledger.enter(tensor, BATCH)
        return inputs

    def _supervision(self) -> Supervision | None:
        """BASIC on the fake model, its operations tagged; None where the recipe has it off."""
        recipe, loaded, ledger = self.recipe, self.loaded, self.ledger
        if not basic_is_on(recipe):
            return None
        nodes = ("_VocabKLBackward", "_DirectionLossBackward", "_FewRowsBackward", "_GuardedBackward")
        ledger.node_tags |= dict.fromkeys(nodes, BASIC)
        return TaggedSupervision(
            loaded.parts,
            recipe.supervision,
            vocabulary_ids=loaded.vocabulary_ids,
            operations=self._operations(),
            special_ids=loaded.tokenizer.all_special_ids,
            embedding_scale=1.0,
            ledger=ledger,
        )

    def _operations(self) -> Operations:
        """The eager operations, tagged in the ledger, without what repeats in them.

        The kernels take more at two moments, neither of which is the step's peak: SDS up to 240 MiB, on a card of
        40 GiB or more up to 800, and DAS has its gradient, 4·M·D bytes, from layer K on already.
        """
        chunk = CHUNK_ELEMENTS["cuda" if self.machine.cuda else "cpu"]
        mass: Callable[..., Tensor] = partial(attention_mass, chunk_elements=chunk)
        capture: Callable[..., Tensor] = capture_layer
        sizes: MeasureRows = row_scaling
        das: Callable[..., Tensor] = direction_loss
        sds: Callable[..., Tensor] = vocab_kl
        if not self.in_full:
            mass = few_samples(mass, self.ledger, chunk)
            capture, sizes = few_positions(capture, self.ledger), few_sizes(sizes, self.ledger)
            das = few_rows(das, self.ledger, gradient_in_forward=False)
            sds = few_rows(sds, self.ledger, gradient_in_forward=True)
        tagged = partial(self.ledger.wrap, BASIC)
        stream = partial(EagerTargetStream, capture_layer=tagged(capture), direction_loss=tagged(das))
        return Operations("reference", stream, tagged(sizes), vocab_kl=tagged(sds), attention_mass=tagged(mass))


class TaggedSupervision(Supervision):
    """BASIC whose losses and metrics are counted under its name."""

    def __init__(self, *args: Any, ledger: Ledger, **options: Any) -> None:
        super().__init__(*args, **options)
        self._ledger = ledger

    def losses(self, *args: Any, **options: Any) -> SupervisionLosses:
        with self._ledger.scope(BASIC):
            return super().losses(*args, **options)


def rehearse(
    recipe: Recipe, frontend: Frontend, machine: Machine, shape: Shape | None = None, *, basic: bool = True
) -> Rehearsal:
    """What one step of a recipe needs on a machine; see ``Rehearser``."""
    return Rehearser(recipe, frontend, machine, basic=basic).rehearse(shape)


def _watch_part(module: nn.Module, ledger: Ledger, tag: str) -> list[RemovableHandle]:
    """Hooks that give ``tag`` to what a module makes in the forward."""

    def before(*_: Any) -> None:
        if ledger.base == KEPT:
            ledger.push(tag)

    def after(*_: Any) -> None:
        if ledger.base == KEPT:
            ledger.pop()

    return [module.register_forward_pre_hook(before), module.register_forward_hook(after)]


def _watch_layer(layer: nn.Module, ledger: Ledger, tag: str) -> list[RemovableHandle]:
    """Hooks that give ``tag`` to what a layer makes in the forward; its output is kept."""

    def keep(_module: nn.Module, _args: Any, out: Any) -> None:
        if ledger.base == KEPT:
            ledger.retag(out[0] if isinstance(out, tuple) else out, KEPT)

    return [*_watch_part(layer, ledger, tag), layer.register_forward_hook(keep)]


def _watch(parts: Parts, ledger: Ledger) -> None:
    """Hooks that tell the ledger where the step is. What a part's backward makes counts as a layer's transients."""
    _watch_part(parts.model.model.vision_tower, ledger, VISION)
    _watch_part(parts.projector, ledger, PROJECTION)

    def left(_module: nn.Module, _args: Any, out: Any) -> None:
        """Switch to the loss when the LLM is done; in the backward, its gradient switches to the layers."""
        ledger.base = LM_LOSS

        def entered(gradient: Tensor) -> None:
            ledger.base = LAYER

        hidden = out[0]  # of a tuple, or of what transformers gives
        if hidden.requires_grad:
            hidden.register_hook(entered)

    parts.language_model.register_forward_hook(left)
    for parameter in parts.model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda p: ledger.retag(p.grad, GRADIENTS))
