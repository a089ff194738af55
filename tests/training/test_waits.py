"""How often the host waits for the device in an optimizer step: stated here, so that it can't creep up."""

from __future__ import annotations

from collections import Counter
from typing import Any, cast

import pytest
import torch

from basic_lite.model.llava import BasicLlavaForConditionalGeneration
from basic_lite.training.processes import ALONE
from basic_lite.training.step import StepCounts, TrainStep
from basic_lite.training.watch import Watch
from tests.support import supervision as kit
from tests.support.waits import Waits, with_copies

torch.set_num_threads(1)

# transformers reads the attention mask of each forward: once where it has no padding, else twice.
READS_OF_A_MASK = {"no padding": 1, "padding": 2}


def waits_of_a_step(rows: str, *, basic: bool = True, **settings: Any) -> tuple[Counter[str], Counter[str]]:
    """The waits of a step of two micro-batches with its update, and those of reading its terms."""
    model = kit.tiny_llava(cls=BasicLlavaForConditionalGeneration)
    kit.set_checkpointing(model, True)
    supervision = kit.build(model, **settings)
    parts = supervision.parts
    optimizer = torch.optim.SGD(parts.projector.parameters(), lr=1e-3)
    made = TrainStep(parts, supervision if basic else None, device=torch.device("cpu"), optimizer=optimizer)
    batch = kit.tiny_batch("full")
    if rows == "no padding":
        batch = {name: value[1:2] for name, value in batch.items() if name != "pixel_values"}
        batch["pixel_values"] = torch.randn(2, 3, 8, 8)
    waits = Waits([*model.parameters(), *model.buffers()])
    step = with_copies(made, waits)
    lambdas = (1.0, 0.01) if basic else (0.0, 0.0)
    with waits:
        counts = StepCounts.of([batch, batch], parts.image_token_id)
        terms = step.gradients([batch, batch], counts, lambdas)
        step.update()
    before = waits.found.copy()
    with waits:
        terms.values(ALONE)
    return before, waits.found - before


@pytest.mark.parametrize("rows", READS_OF_A_MASK)
@pytest.mark.parametrize(
    ("settings", "forwards"),
    [({}, 1), ({"token_weights": "uniform"}, 2), ({"guard": 0.5, "sds_tokens": 2, "sinks": "drop"}, 1)],
    ids=["attention", "uniform", "guarded"],
)
def test_a_step_waits_for_nothing_but_transformers_masks(rows: str, settings: dict[str, Any], forwards: int) -> None:
    step, terms = waits_of_a_step(rows, **settings)
    assert step.total() == 2 * forwards * READS_OF_A_MASK[rows], step
    assert not terms, "a logged step reads its terms one by one, and not by one copy of all"


def test_basic_adds_no_wait() -> None:
    assert waits_of_a_step("padding", basic=False)[0] == waits_of_a_step("padding")[0]


def test_a_steps_numbers_are_read_by_one_copy() -> None:
    model = kit.tiny_llava(cls=BasicLlavaForConditionalGeneration)
    supervision = kit.build(model)
    optimizer = torch.optim.AdamW(supervision.parts.projector.parameters(), lr=1e-3)
    step = TrainStep(supervision.parts, supervision, device=torch.device("cpu"), optimizer=optimizer)
    batch = kit.tiny_batch("full")
    counts = StepCounts.of([batch, batch], supervision.parts.image_token_id)
    step([batch, batch], counts, (1.0, 0.01))  # the optimizer has its state now
    missing = cast(Any, None)
    watch = Watch(step, missing, missing, missing, missing, missing, losses=[], save=missing)
    waits = Waits([*model.parameters(), *model.buffers()])
    with waits:
        terms = step.gradients([batch, batch], counts, (1.0, 0.01))
    waits.put([*terms.sums().values(), *terms.lm_parts])
    before = waits.found.total()
    with waits:
        watch.look(1, [batch, batch], terms, counts)
    assert waits.found.total() == before, "they are read one by one, and not by one copy of all"


def test_copies_to_a_device_are_not_waited_for() -> None:
    model = kit.tiny_llava(cls=BasicLlavaForConditionalGeneration)
    supervision, batch = kit.build(model), kit.tiny_batch()
    layout = supervision.layout(batch)
    step = TrainStep(supervision.parts, supervision, device=torch.device("meta"))
    with Waits(()) as waits:
        inputs = step.inputs(batch)
        moved = layout.to(torch.device("meta"))
    assert not waits.found and moved.positions.is_meta
    assert inputs.keys() >= {"labelled", "image_positions"} and all(value.is_meta for value in inputs.values())


def test_what_waits_is_seen() -> None:
    device, host = torch.arange(4.0), torch.arange(4.0)
    with Waits([device]) as waits:
        assert float(host.sum()) == 6 and host[host > 1].numel() == 2  # the host's own
        assert not waits.found
        (device * 2).sum().item()
        device[device > 1].clone()
        torch.isin(device, host).nonzero()
        host.to("meta")
    assert waits.found == {"_local_scalar_dense": 1, "index": 1, "isin": 1, "nonzero": 1, "copy": 1}
