"""``basic-lite train RECIPE --dry-run``: all of a run that needs neither weights nor a GPU."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from basic_lite.console import quiet_libraries, speaker
from basic_lite.data.prepare import Prepared
from basic_lite.data.show import render_sample
from basic_lite.errors import UserError
from basic_lite.model.audit import Part, render
from basic_lite.model.frontend import Frontend, load_frontend
from basic_lite.model.load import pick_device, pick_dtype
from basic_lite.model.plan import planned_parts
from basic_lite.recipe.rules import accumulation
from basic_lite.recipe.schema import Recipe
from basic_lite.supervision.target import supervised_layers
from basic_lite.train.assembly import basic_is_on, check_machine, preflight
from basic_lite.train.batches import Schedule
from basic_lite.train.bundle import open_bundle
from basic_lite.train.restore import require_same_model
from basic_lite.train.run_folder import look_at_run_folder, require_writable
from basic_lite.units import MIB


@dataclass(frozen=True)
class BasicCost:
    """What BASIC adds to one micro-batch, computed from shapes. Bytes are the peaks that the eager operations state."""

    layers: int
    total_layers: int
    visual_tokens: int
    flops: float
    step_flops: float
    buffer_bytes: int

    @property
    def share(self) -> float:
        """BASIC's floating-point operations, divided by those of the forward and backward without it."""
        return self.flops / self.step_flops if self.step_flops else 0.0


def basic_cost(recipe: Recipe, frontend: Frontend, parts: list[Part], *, tokens: int, visual: int) -> BasicCost:
    """BASIC's cost for one sample of ``tokens`` tokens, ``visual`` of them visual, times the micro-batch.

    SDS is three products of M × D × V: two forward, one for the gradient. Attention mass recomputes the scores of the
    text rows in K layers. DAS and the taps are a few operations an element. A step without BASIC takes 2 operations a
    weight and token forward, 2 for the gradient of the activations, and 2 more under checkpointing. The head is left
    out: it works on labelled rows only.
    """
    text = frontend.config.text_config
    hidden, vocabulary = text.hidden_size, text.vocab_size
    k = supervised_layers(recipe.supervision.layers, frontend.layer_count)
    m = visual * recipe.training.micro_batch
    settings = recipe.supervision
    flops = 0.0
    if settings.lambda_sds > 0:
        flops += 3 * 2.0 * m * hidden * vocabulary
    if isinstance(settings.token_weights, str):
        words = max(tokens - visual, 0)
        flops += k * 2.0 * hidden * words * tokens * recipe.training.micro_batch
    flops += (2 * k + 20) * m * hidden
    weights = sum(p.parameters for p in parts if p.part in ("LLM linears", "LoRA"))
    passes = 3 if recipe.training.gradient_checkpointing else 2
    step = 2.0 * passes * weights * tokens * recipe.training.micro_batch
    return BasicCost(k, frontend.layer_count, m, flops, step, 8 * m * hidden)


def dry_run(recipe: Recipe, console: Console | None = None) -> None:
    """Check the recipe, read configurations and data, print what the run would be and one sample of it.

    Raises:
        UserError: whatever would stop the run before its weights are loaded.
    """
    console = console or Console(highlight=False)
    quiet_libraries()
    say = speaker(console)
    for warning in _refusals(recipe):  # the plan is worth seeing all the same
        say(f"note: `train` would refuse to start: {warning}")
    device = pick_device("cpu") if recipe.training.device == "cpu" else None
    if device is None and not torch.cuda.is_available():
        try:
            check_machine(recipe, torch.device("cpu"))
        except UserError as error:
            say(f"note: this machine has no GPU; on it the run would be refused: {error}")
    frontend, data = preflight(_without_projector(recipe), device, say)
    # Of the card the recipe is for: without a GPU here, `auto` would otherwise show float32.
    dtype = torch.bfloat16 if recipe.model.dtype == "auto" and recipe.training.device != "cpu" else None
    parts = planned_parts(recipe, frontend, dtype or pick_dtype(recipe.model.dtype, torch.device("cpu")))
    console.print(render(parts))
    console.print(_facts(recipe, frontend, data, parts))
    _show_sample(recipe, frontend, data, console)
    console.print("dry run: nothing was loaded, nothing was written", style="dim")


def _refusals(recipe: Recipe) -> list[str]:
    """What would stop `train` now but may be as it should: a folder in use, a stage 1 that hasn't run yet."""
    found = []
    path = Path(recipe.output) / recipe.name
    existed, parent_existed = path.exists(), path.parent.exists()
    try:
        look_at_run_folder(recipe, resume=False)
        require_writable(path)
    except UserError as error:
        found.append(str(error))
    if not existed and path.is_dir():
        path.rmdir()  # it was only tried
        if not parent_existed:
            path.parent.rmdir()
    if recipe.model.projector is not None:
        try:
            earlier = open_bundle(Path(recipe.model.projector), "model.projector")
            require_same_model(earlier, load_frontend(recipe.model).config, "model.projector")
        except UserError as error:
            found.append(str(error))
    return found


def _without_projector(recipe: Recipe) -> Recipe:
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"projector": None})})


def _facts(recipe: Recipe, frontend: Frontend, data: Prepared, parts: list[Part]) -> Table:
    report, training = data.report, recipe.training
    steps = Schedule(data.sampler, recipe).steps
    samples = steps * training.global_batch
    per_sample = float(report.lengths.mean())
    rows: dict[str, Any] = {
        "trainable parameters": f"{sum(p.trainable for p in parts):,} of {sum(p.parameters for p in parts):,}",
        "steps": f"{steps:,} of {training.global_batch} samples ({training.micro_batch} × "
        f"{accumulation(recipe)} accumulated), "
        f"{samples / max(len(data.train), 1):.2f} epochs of {len(data.train):,} samples",
        "tokens": f"about {samples * per_sample:,.0f} ({per_sample:,.0f} a sample, "
        f"longest {int(report.lengths.max()):,}, limit {recipe.data.max_length:,})",
        "tokens an image": f"{frontend.tokens_per_image}",
        "learning rates": f"projector {training.projector_learning_rate:g}"
        + (f", LoRA {training.learning_rate:g}" if recipe.lora.enabled else ""),
    }
    if basic_is_on(recipe):
        images = report.n_images[report.has_image]
        visual = round(float(images.mean()) * frontend.tokens_per_image) if len(images) else 0
        length = round(float(report.lengths[report.has_image].mean())) if len(images) else 0
        cost = basic_cost(recipe, frontend, parts, tokens=length, visual=visual)
        settings = recipe.supervision
        rows["BASIC adds"] = (
            f"v̂ from layers 1..{cost.layers} of {cost.total_layers}; "
            f"λ1 {settings.lambda_das:g} ({settings.direction}), λ2 {settings.lambda_sds:g}; "
            f"{cost.share:.1%} of the step's operations and {cost.buffer_bytes / MIB:.1f} MiB of buffers "
            f"for {cost.visual_tokens:,} visual tokens (from shapes)"
        )
    else:
        rows["BASIC adds"] = "nothing: it is off in this recipe"
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _show_sample(recipe: Recipe, frontend: Frontend, data: Prepared, console: Console) -> None:
    """The first sample that has an image, or the first."""
    with_image = data.report.has_image.nonzero()[0]
    index = int(with_image[0]) if len(with_image) else 0
    record = data.train.record(index)
    encoded = data.train.chat.encode(record, recipe.data.max_length)
    sample = data.train[index]
    shape = tuple(sample["pixel_values"].shape) if "pixel_values" in sample else None
    console.print()
    console.print(
        f"one sample as the model gets it ({record.place}; {len(encoded.input_ids)} tokens"
        + (f", images {shape}" if shape else ", no image")
        + "): [bold green]supervised[/], [dim]not supervised[/], [cyan]image[/]"
    )
    console.print(render_sample(encoded, frontend.tokenizer, frontend.image_token_id))
    console.print()
