"""The products of a training step, counted from shapes.

Symbols: B batch · T sequence · N visual tokens of a sample · n text queries of a sample · D hidden size · V vocabulary
· L decoder layers · K supervised layers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from basic_lite.data.check import DataReport
from basic_lite.model.audit import Part
from basic_lite.model.frontend import Frontend
from basic_lite.recipe.rules import recomputed_layers
from basic_lite.recipe.schema import Recipe
from basic_lite.supervision.calibration import scores_decide
from basic_lite.supervision.target import supervised_layers
from basic_lite.training.assembly import basic_is_on
from basic_lite.training.looks import looks_of

BASIC_PRODUCTS = ("attention mass", "SDS")


@dataclass(frozen=True)
class Sizes:
    """What a sample is multiplied with."""

    tokens: float  # T
    visual: float  # N
    queries: float  # n
    labelled: float
    tower_tokens: float
    D: int
    V: int
    L: int
    K: int  # 0: no attention mass
    llm_weights: float  # of the linear layers
    lora_weights: float
    tower_weights: float
    projector_weights: float
    recomputed: int  # decoder layers that run again in the backward
    sds_tokens: float = math.inf  # the most of a sample that SDS is computed on; 0: it is off
    mass_pass: bool = False  # one more forward a step, for `token_weights: uniform`


def products(s: Sizes) -> dict[str, float]:
    """A sample's products in a training step by part, 2 operations a multiply-add; element-wise work isn't counted.

    A frozen linear layer is multiplied twice (forward, gradient of its input), an adapter's matrices three times (also
    for their own gradients), and both once more where the layer is recomputed. Attention's two products are made once
    in each forward and four more times in the backward. They are counted in full, not causal. The vision tower runs
    forward only, and the projector isn't recomputed.
    """
    again = s.recomputed / s.L + int(s.mass_pass)
    return {
        "LLM linears": 2.0 * (2 + again) * s.tokens * s.llm_weights,
        "LoRA": 2.0 * (3 + again) * s.tokens * s.lora_weights,
        "attention": 4.0 * (3 + again) * s.tokens**2 * s.D * s.L,
        "LM loss": 4.0 * s.labelled * s.D * s.V,
        "vision tower": 2.0 * s.tower_tokens * s.tower_weights * (1 + int(s.mass_pass)),
        "projector": 6.0 * s.visual * s.projector_weights,
        "attention mass": 2.0 * s.queries * s.tokens * s.D * s.K,
        "SDS": 6.0 * min(s.visual, s.sds_tokens) * s.D * s.V,
    }


def sizes_of(
    recipe: Recipe, frontend: Frontend, parts: Sequence[Part], *, tokens: float, images: float, labelled: float
) -> Sizes:
    """The sizes of a recipe's sample.

    Args:
        parts: the part table.
        tokens: of the sample, image tokens included.
        images: of the sample.
    """
    settings, text = recipe.supervision, frontend.config.text_config
    weights = {part: sum(p.parameters for p in parts if p.part == part) for part in {p.part for p in parts}}
    basic, visual = basic_is_on(recipe), images * frontend.tokens_per_image
    attended = basic and isinstance(settings.token_weights, str)
    return Sizes(
        tokens=tokens,
        visual=visual,
        queries=max(tokens - visual, 0),
        labelled=labelled,
        tower_tokens=visual + images,
        D=text.hidden_size,
        V=text.vocab_size,
        L=frontend.layer_count,
        K=supervised_layers(settings.layers, frontend.layer_count) if attended else 0,
        llm_weights=weights.get("LLM linears", 0),
        lora_weights=weights.get("LoRA", 0),
        tower_weights=weights.get("vision tower", 0),
        projector_weights=weights.get("projector", 0),
        recomputed=recomputed_layers(recipe.training.gradient_checkpointing, frontend.layer_count),
        sds_tokens=(settings.sds_tokens or math.inf) if basic and settings.lambda_sds > 0 else 0,
        mass_pass=basic and settings.token_weights == "uniform",
    )


def mean_sizes(
    recipe: Recipe, frontend: Frontend, parts: Sequence[Part], report: DataReport, *, with_image: bool = False
) -> Sizes:
    """The sizes of the data's mean sample; ``with_image``: of those that have one."""
    chosen = report.has_image if with_image else report.has_image | True
    count = max(int(chosen.sum()), 1)
    return sizes_of(
        recipe,
        frontend,
        parts,
        tokens=int(report.lengths[chosen].sum()) / count,
        images=int(report.n_images[chosen].sum()) / count,
        labelled=int(report.supervised[chosen].sum()) / count,
    )


def basic_products(recipe: Recipe, sizes: Sizes) -> float:
    """What BASIC adds to a sample in the run's mean step: not every step need have it."""
    counted = products(sizes)
    basic = sum(counted[name] for name in BASIC_PRODUCTS) + forward_products(sizes) * sizes.mass_pass
    return basic / recipe.supervision.every_n_steps


def forward_products(sizes: Sizes) -> float:
    """A sample's way through vision tower and LLM."""
    linears = sizes.tokens * (sizes.llm_weights + sizes.lora_weights) + sizes.tower_tokens * sizes.tower_weights
    return 2.0 * linears + 4.0 * sizes.tokens**2 * sizes.D * sizes.L


def evaluation_products(recipe: Recipe, frontend: Frontend, parts: Sequence[Part], report: DataReport) -> float:
    """The products of the loss on held-out data.

    Args:
        report: of that data.
    """
    sizes = mean_sizes(recipe, frontend, parts, report)
    return len(report.lengths) * (forward_products(sizes) + 2.0 * sizes.labelled * sizes.D * sizes.V)


def looks_products(
    recipe: Recipe, frontend: Frontend, sizes: Sizes, *, steps: int, samples: int, half: bool, done: int = 0
) -> float:
    """The products of the looks that a run has left after ``done`` steps; those of evaluations cost next to none.

    With a gate BASIC's pull is tried once: that it is on after the first look is what the other products count, too.

    Args:
        sizes: of a sample with a picture.
        steps: of the whole run.
        samples: that it trains on, each pass over the data counted.
        half: its forward is in 16 bit.
    """
    if not basic_is_on(recipe):
        return 0.0
    weights, tokens = sizes.llm_weights, sizes.tokens
    looks = looks_of(recipe, frontend, llm_weights=weights, steps=steps, samples=samples, tokens=tokens, half=half)
    if looks is None:
        return 0.0
    passes = looks.passes_after(done)
    if passes and recipe.supervision.gate:
        trials = looks.full_trials(parted=scores_decide(recipe.supervision))
        passes += trials.again_passes + trials.passes
    return passes * forward_products(sizes)


def basic_share(counted: dict[str, float]) -> float:
    """BASIC's products over those of the step without it."""
    basic = sum(counted[name] for name in BASIC_PRODUCTS)
    return basic / max(sum(counted.values()) - basic, 1)
