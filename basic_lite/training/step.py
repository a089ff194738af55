"""One optimizer step, once: what training, a rehearsal, ``--measure`` and the bench all run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from basic_lite.data.pixel_table import on_device
from basic_lite.data.tokens import IGNORE
from basic_lite.model.adapt import leave_casts_to_autocast
from basic_lite.model.llava import labelled_positions, likelihoods_of
from basic_lite.model.parts import Parts
from basic_lite.supervision import Supervision, SupervisionLosses
from basic_lite.supervision.losses import zero_with_graph
from basic_lite.training.breakdown import BETWEEN, LOSS_BACKWARD, OPTIMIZER, OTHER
from basic_lite.training.processes import ALONE, Processes

Batch = dict[str, Tensor]
Lambdas = tuple[float, float]
Lap = Callable[[], object]
Autocast = Callable[[], AbstractContextManager[Any]]
Mark = Callable[[str], object]

# Labelled tokens that a loss in float16 may be divided by before its gradients run out of the type's small numbers.
# Measured with SmolLM2 in NF4, computed in float16, beside float32: their relative error is .01 by 200 or fewer, .02 to
# .06 by 5,000, and .3 by 40,000.
FLOAT16_TOKENS = 256


@dataclass(frozen=True)
class StepCounts:
    """What the terms of one optimizer step are divided by: counts over all its micro-batches and processes."""

    labelled_tokens: int
    samples_with_image: int
    tokens: int  # without padding

    @classmethod
    def of(cls, batches: Iterable[Batch], image_token_id: int) -> StepCounts:
        """Count batches that are on the host, so that nothing waits for a device."""
        labelled = with_image = tokens = 0
        for batch in batches:
            labelled += int((batch["labels"][:, 1:] != IGNORE).sum())
            with_image += int((batch["input_ids"] == image_token_id).any(dim=1).sum())
            tokens += int(batch["attention_mask"].sum())
        return cls(labelled, with_image, tokens)

    def over(self, processes: Processes) -> StepCounts:
        """The sums over all processes."""
        return StepCounts(*processes.sum([self.labelled_tokens, self.samples_with_image, self.tokens]))

    def times(self, factor: int) -> StepCounts:
        """The counts of ``factor`` such batches."""
        return StepCounts(self.labelled_tokens * factor, self.samples_with_image * factor, self.tokens * factor)


@dataclass(frozen=True)
class MicroBatchLoss:
    """A micro-batch's loss and its terms. ``basic`` is None where BASIC is off in this step."""

    loss: Tensor
    lm: Tensor
    basic: SupervisionLosses | None


class Terms:
    """Collects on the device, in few operations; ``values`` brings the sums to the host, which waits for the device."""

    def __init__(self) -> None:
        # By what a total is of: the sums, one a name, and what a mean is divided by; 0: no mean.
        self._totals: dict[tuple[str, ...], tuple[Tensor, int]] = {}
        self.lm_parts: list[Tensor] = []  # each micro-batch's share of the LM loss

    def add(self, result: MicroBatchLoss) -> None:
        """Add a micro-batch's shares of the terms, and its measures weighted by its samples with an image.

        Call it after the backward, which measures what the gradient guard does.
        """
        losses = {"loss": result.loss, "lm": result.lm}
        self.lm_parts.append(result.lm.detach())
        if result.basic is not None:
            losses |= {"das": result.basic.das, "sds": result.basic.sds}
        self._add(losses)
        if result.basic is not None and result.basic.samples:
            guard, samples = result.basic.guard, result.basic.samples
            for measures in (result.basic.metrics, guard.metrics if guard is not None else {}):
                self._add(measures, samples)

    def _add(self, found: Mapping[str, Tensor], weight: int = 0) -> None:
        if not found:
            return
        values = torch.stack([value.detach() for value in found.values()]).float()
        values = values * weight if weight else values
        total, before = self._totals.get(tuple(found), (None, 0))
        self._totals[tuple(found)] = (values if total is None else total + values, before + weight)

    def sums(self) -> dict[str, Tensor]:
        """This process's shares of the losses, on the device."""
        losses = [(names, total) for names, (total, weight) in self._totals.items() if not weight]
        return {name: value for names, total in losses for name, value in zip(names, total.unbind(), strict=True)}

    def values(self, processes: Processes) -> dict[str, float]:
        """The step's terms and measures, the same in every process."""
        # One copy brings all of them.
        read = torch.cat([total for total, _ in self._totals.values()]).tolist() if self._totals else []
        named = [(name, weight) for names, (_, weight) in self._totals.items() for name in names]
        own = [(name, total, weight) for (name, weight), total in zip(named, read, strict=True)]
        sums: dict[str, tuple[float, int]] = {}
        # A process may have had no image, or no micro-batch at all: totals are brought together by name.
        for row in processes.gather(own):
            for name, total, weight in row:
                before, count = sums.get(name, (0.0, 0))
                sums[name] = (before + total, count + weight)
        return {name: total / weight if weight else total for name, (total, weight) in sums.items()}


class TrainStep:
    """One optimizer step of a model: forwards with the taps open, losses, backwards, clipping, update.

    Everything that a step needs set up stands here: modes, casts, copies to the device, the pass that uniform weights
    need first, the sum of gradients over processes, and clipping.
    """

    def __init__(
        self,
        parts: Parts,
        supervision: Supervision | None,
        *,
        device: torch.device,
        optimizer: torch.optim.Optimizer | None = None,
        scheduler: Any = None,
        max_grad_norm: float = 0.0,
        autocast: Autocast = nullcontext,
        processes: Processes = ALONE,
        mark: Mark = lambda name: None,
        float16: bool = False,
    ) -> None:
        """Put the model into training mode.

        Args:
            parts: the parts of an adapted model.
            supervision: BASIC; None: off.
            device: where the model is, and where batches are copied.
            optimizer: None where steps are never updated, as in a rehearsal.
            scheduler: the learning rate's; stepped after the optimizer.
            max_grad_norm: gradients are clipped to it; 0: not.
            autocast: a context for the model's forward. LoRA layers leave casts to it from now on, unless it is none.
            processes: the processes that share the step.
            mark: told the name of the part of a step that begins, as ``breakdown`` has them.
            float16: something of the backward is in float16, so the loss is made larger for it (``loss_scale``).
        """
        self.parts, self.supervision, self.device = parts, supervision, device
        self.optimizer, self.scheduler, self.max_grad_norm = optimizer, scheduler, max_grad_norm
        self.processes, self.mark, self.float16 = processes, mark, float16
        self.trainable = [p for p in parts.model.parameters() if p.requires_grad]
        self._autocast = autocast
        if autocast is not nullcontext:
            leave_casts_to_autocast(parts)
        self.train_mode()

    def __call__(self, batches: list[Batch], counts: StepCounts, lambdas: Lambdas, lap: Lap = lambda: None) -> Terms:
        """Make one step. ``lap`` is called after the mean-mass pass, each micro-batch's backward, and the update."""
        terms = self.gradients(batches, counts, lambdas, lap)
        self.update()
        lap()
        return terms

    def gradients(
        self, batches: list[Batch], counts: StepCounts, lambdas: Lambdas, lap: Lap = lambda: None, *, number: int = 0
    ) -> Terms:
        """Forward and backward of every micro-batch; gradients add up in the parameters, over processes too.

        Args:
            batches: this process's micro-batches, on the host.
            counts: the whole step's, over all processes.
            lambdas: (λ1, λ2); (0, 0): BASIC is off in this step.
            number: of the step in the run, for the tokens that SDS draws.
        """
        self.train_mode()
        terms, scale = Terms(), self.loss_scale(counts)
        self.mark(OTHER)
        mean_mass = self.mean_mass(batches, counts, lambdas)
        lap()
        for index, batch in enumerate(batches):
            self.mark(OTHER)
            result = self.loss(batch, counts, lambdas, number=number, mean_mass=mean_mass, detailed=index == 0)
            self.mark(LOSS_BACKWARD)
            (result.loss if scale == 1 else result.loss * scale).backward()
            terms.add(result)
            del result
            lap()
        self.processes.sum_gradients(self.trainable)
        found = [parameter.grad for parameter in self.trainable if parameter.grad is not None]
        if scale != 1 and found:
            torch._foreach_mul_(found, 1 / scale)
        return terms

    def loss_scale(self, counts: StepCounts) -> int:
        """What the loss is multiplied with before a backward in float16, and the gradients divided by after it.

        A power of two: without it gradients that are divided by a large step's tokens become 0. 1 in any other type.
        """
        return 2 ** max(0, (counts.labelled_tokens // FLOAT16_TOKENS).bit_length() - 1) if self.float16 else 1

    def loss(
        self,
        batch: Batch,
        counts: StepCounts,
        lambdas: Lambdas,
        *,
        number: int = 0,
        mean_mass: Tensor | None = None,
        detailed: bool = False,
    ) -> MicroBatchLoss:
        """L = L_lm + λ1 L_das + λ2 L_sds of one micro-batch: the forward with the taps open, then the losses.

        Args:
            batch: ``input_ids``, ``attention_mask``, ``labels`` [B, T] and maybe ``pixel_values`` [I, 3, h, w], on the
                host.
            counts: the whole optimizer step's; each term is divided by its count.
            lambdas: (λ1, λ2); (0, 0): nothing is tapped.
            number: of the step in the run, for the tokens that SDS draws.
            mean_mass: the step's mean attention mass, for ``token_weights: uniform``.
            detailed: also the measures that one micro-batch a step is enough for.
        """
        lambda_das, lambda_sds = lambdas
        supervision = self.supervision if any(lambdas) else None
        taps = nullcontext() if supervision is None else supervision.capture(supervision.layout(batch, number))
        with taps as captured:
            lm = self.forward(**self.inputs(batch), num_items_in_batch=max(counts.labelled_tokens, 1)).loss
        loss, basic = lm, None
        if supervision is not None and captured is not None:
            basic = supervision.losses(
                captured, samples_with_image=max(counts.samples_with_image, 1), mean_mass=mean_mass, detailed=detailed
            )
            loss = lm + lambda_das * basic.das + lambda_sds * basic.sds
        if "pixel_values" not in batch:
            # A zero gradient, so that its optimizer state moves on. With images it would add to the backward's peak.
            loss = loss + zero_with_graph(self.parts.projector)
        return MicroBatchLoss(loss, lm, basic)

    def rates(self) -> dict[str, float]:
        """The learning rates of the next update, by parameter group; biases have their group's."""
        groups = self.optimizer.param_groups if self.optimizer is not None else []
        return {f"lr_{group['name']}": group["lr"] for group in groups if not group["name"].endswith("_bias")}

    def update(self) -> None:
        """Clip the gradients, change the weights, drop the gradients."""
        self.mark(OPTIMIZER)
        if self.max_grad_norm:
            nn.utils.clip_grad_norm_(self.trainable, self.max_grad_norm)
        assert self.optimizer is not None, "this step was made without an optimizer"
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        self.drop_gradients()
        self.mark(BETWEEN)

    def skip(self) -> None:
        """A step without a sample: the weights stay, and the learning rate moves on with the steps."""
        if self.scheduler is not None:
            self.scheduler.step()

    def drop_gradients(self) -> None:
        """Forget gradients, also those of a step that broke off."""
        for parameter in self.trainable:
            parameter.grad = None

    @torch.no_grad()
    def mean_mass(self, batches: list[Batch], counts: StepCounts, lambdas: Lambdas) -> Tensor | None:
        """The step's mean attention mass Σ_i a_i for ``token_weights: uniform``: one more forward, without dropout.

        It is always measured this way, so it is the same whatever the micro-batch and the number of processes. None
        where nothing needs it.
        """
        supervision = self.supervision
        if supervision is None or not supervision.needs_mean_mass or not any(lambdas):
            return None
        self.parts.model.eval()
        total = torch.zeros((), device=self.device)
        for batch in batches:
            with supervision.capture(supervision.layout(batch), attention_only=True) as captured:
                # The output isn't needed: compute one column of logits, and no cache.
                self.forward(**self.inputs(batch, labels=False), logits_to_keep=1, use_cache=False)
            total = total + supervision.masses(captured).sum()
        self.train_mode()
        return self.processes.sum_tensor(total) / max(counts.samples_with_image, 1)

    def inputs(self, batch: Batch, *, labels: bool = True) -> Batch:
        """A host batch on the device, with the positions of its image and labelled tokens, which are found on the host.

        Nothing waits for the device.
        """
        on_host = dict(batch)
        if "pixel_values" in batch:
            images = batch["input_ids"].flatten() == self.parts.image_token_id
            on_host["image_positions"] = images.nonzero().squeeze(1)
        if labels:
            on_host["labelled"] = labelled_positions(batch["labels"])
        else:
            on_host.pop("labels", None)
        return on_device(on_host, self.device)

    @torch.no_grad()
    def sample_losses(self, batch: Batch) -> Tensor:
        """L_lm of each sample of a host batch, in nats a labelled token, [B] float64 on the host."""
        inputs, labels = self.inputs(batch, labels=False), batch["labels"]
        inputs.pop("image_positions", None)  # the inner model finds them itself
        with self._autocast():
            hidden = self.parts.model.model(**inputs, use_cache=False).last_hidden_state
            nats = likelihoods_of(hidden, self.parts.lm_head, labels).nats
        return nats / (labels[:, 1:] != IGNORE).sum(dim=1)

    def forward(self, **inputs: Any) -> Any:
        """The model's forward under autocast."""
        with self._autocast():
            return self.parts.model(**inputs)

    def train_mode(self) -> None:
        """Everything trains but the vision tower, which is frozen."""
        self.parts.model.train()
        self.parts.vision_tower.eval()
