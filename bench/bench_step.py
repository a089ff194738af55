"""A whole training step with BASIC off, on, and done the naive way: time, peak memory, and where the time goes.

One process, the same model and batch: forward, backward, clipping and the optimizer's step, the three ways taking
turns. The model is ``shapes``' mid-size one: 7B's proportions at a size that a CPU can train, so that BASIC has about
the share of a step's FLOPs that it has in 7B (``flops`` counts both).
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from basic_lite.console import quiet_libraries
from basic_lite.model.frontend import load_frontend
from basic_lite.recipe.schema import Recipe
from basic_lite.rehearsal import Shape
from basic_lite.rehearsal.cost import basic_share
from basic_lite.tools.measure import LongestStep
from basic_lite.training.assembly import autocast_of
from basic_lite.training.breakdown import LOSS_BACKWARD, OPTIMIZER, OTHER, Breakdown, Clock
from bench import measure
from bench.flops import SEVEN_B, flops_of
from bench.naive_step import NaiveStep
from bench.report import Report
from bench.rows import StepRow
from bench.synthetic import synthetic_model
from bench.timed_step import timed_by
from tests.support.shapes import SIZES, shape_recipe

OFF, ON, NAIVE = WAYS = "off", "on", "naive"


@dataclass(frozen=True)
class Case:
    """A micro-batch of a model in ``shapes``, an image a sample."""

    size: str
    samples: int  # B
    tokens: int  # T
    seconds: float  # that each way is timed
    tolerance: float  # of on's loss and projector gradient against the naive way's, relative

    def __str__(self) -> str:
        size = SIZES[self.size]
        return (
            f"{self.samples}×{self.tokens} tokens, {size.tower.tokens_per_image} of an image · "
            f"D {size.hidden}, MLP {size.mlp}, L {size.layers}, V {size.vocabulary}"
        )

    def recipe(self, folder: Path, device: torch.device, **keys: Any) -> Recipe:
        """NF4, LoRA on all linear layers without dropout, checkpointing, AdamW; one micro-batch a step."""
        training = {"device": device.type, "optimizer": "adamw"}
        keys["lora"] = {"alpha": 32.0, "dropout": 0.0}
        batch = {"micro_batch": self.samples, "global_batch": self.samples, "max_length": self.tokens}
        return shape_recipe(folder, self.size, training=training, **batch, **keys)


SHAPES = {
    "tiny": [Case("toy", 2, 80, 0.02, 1e-4)],
    "cpu": [Case("mid", 1, 256, 8.0, 1e-4)],
    # In bf16 the naive way's v is rounded where the model hands it out; ours is taken before.
    "gpu": [Case("mid", 8, 256, 5.0, 5e-2)],
}


class ThreeWays:
    """One model and one batch, stepped in three ways under a clock."""

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        torch.manual_seed(0)
        loaded = synthetic_model(recipe, load_frontend(recipe.model), device)
        self.recipe, self.parts, self.breakdown = recipe, loaded.parts, Breakdown(Clock(device))
        make, shape = timed_by(self.breakdown), Shape.of(recipe)
        self.longest = LongestStep(recipe, loaded, shape, device, lambda text: None, make)
        ours = self.longest.step
        assert ours.supervision is not None
        ours.supervision.vocabulary.mean_norm()  # once a run, so none of a step's time
        naive = NaiveStep(
            self.parts,
            ours.supervision,
            device=device,
            optimizer=ours.optimizer,
            max_grad_norm=ours.max_grad_norm,
            autocast=autocast_of(recipe, device),
            watch=self.breakdown.wrap,
        )
        self.steps = {OFF: ours, ON: ours, NAIVE: naive}

    def loss(self, way: str) -> Tensor:
        """The loss of one of the ways, as it is in a step of one micro-batch."""
        self.parts.language_model.set_attn_implementation("eager" if way == NAIVE else self.recipe.model.attention)
        supervision = self.longest.supervision
        lambdas = supervision.lambdas(0, 0) if supervision is not None and way != OFF else (0.0, 0.0)
        return self.steps[way].loss(self.longest.batches[0], self.longest.counts, lambdas, detailed=True).loss

    def run(self, way: str) -> dict[str, float]:
        """One step: where its time went. It drops its gradients, so that each finds what the one before found."""
        breakdown = self.breakdown
        breakdown.start()
        with breakdown.watching(self.parts, basic=way == ON):
            loss = self.loss(way)
            breakdown.base(LOSS_BACKWARD)
            loss.backward()
            del loss
            breakdown.base(OPTIMIZER)
            self.steps[way].update()
            breakdown.base(OTHER)
        return breakdown.take()

    def gradient(self, way: str) -> tuple[Tensor, Tensor]:
        """Loss, and the projector's gradient as one vector; weights stay as they are."""
        loss = self.loss(way)
        loss.backward()
        gradients = [p.grad for p in self.parts.projector.parameters()]
        found = torch.cat([g.flatten() for g in gradients if g is not None]).clone()
        self.longest.step.drop_gradients()
        return loss.detach(), found


def test_step(shape: Case, report: Report, device: torch.device) -> None:
    quiet_libraries()
    with tempfile.TemporaryDirectory() as folder:
        recipe = shape.recipe(Path(folder), device)
        ways = ThreeWays(recipe, device)
    counted = flops_of(recipe, ways.longest)

    # Right first: the two ways of BASIC are one step.
    pairs = zip(ways.gradient(ON), ways.gradient(NAIVE), strict=True)
    errors = [measure.relative(ours, naive) for ours, naive in pairs]
    for what, error in zip(("loss", "projector gradient"), errors, strict=True):
        assert error <= shape.tolerance, f"{what}: on and naive differ by {error:.2g}; not timed"

    ways.run(OFF)  # makes the optimizer's state
    peaks = {way: measure.peak_bytes(partial(ways.run, way), device) for way in WAYS}
    taken: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    works = {way: lambda way=way: taken[way].append(ways.run(way)) for way in WAYS}
    runs = measure.take_turns(works, device, shape.seconds)

    for way in WAYS:
        timing, parts = measure.timing_of(runs[way]), dict.fromkeys(chain(*taken[way]))
        # The ratio of each round by itself, so that a machine that slows down in between does not count.
        ratios = [mine / off for mine, off in zip(runs[way], runs[OFF], strict=True)]
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
                loss_error=errors[0] if way == ON else None,
                gradient_error=errors[1] if way == ON else None,
                parts_ms={part: statistics.median(step.get(part, 0.0) for step in taken[way]) for part in parts},
                flops=counted,
                basic_share_of_flops=basic_share(counted),
                basic_share_of_flops_in_7b=basic_share(SEVEN_B),
            )
        )
