"""Out of memory: what it looks like, smaller micro-batches, and what to say where none is left."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from accelerate.utils.memory import clear_device_cache
from torch import Tensor

from basic_lite.errors import UserError, is_out_of_memory
from basic_lite.recipe.schema import Recipe
from basic_lite.rehearsal.machine import ALLOWANCE_BYTES
from basic_lite.units import GIB

# A step that the estimate said would fit and that didn't is advised down to this share of the estimate.
ENOUGH_LESS = 0.9


def free_what_is_left() -> None:
    """Give back what a failed attempt held; call it when its exception, and so its frames, are gone."""
    clear_device_cache(garbage_collection=True)


def slices(batch: dict[str, Tensor], samples: int, image_token_id: int) -> Iterator[dict[str, Tensor]]:
    """A collated batch in parts of at most ``samples`` samples, each as if it had been collated alone.

    Args:
        batch: ``input_ids``, ``attention_mask``, ``labels`` [B, T]; ``pixel_values`` [I, 3, h, w], images in the order
            of their placeholders.
        samples: the most samples of a part.
        image_token_id: id of a visual token's placeholder; every image has equally many.
    """
    ids = batch["input_ids"]
    if len(ids) <= samples:
        yield batch
        return
    pixels = batch.get("pixel_values")
    visual = (ids == image_token_id).sum(dim=1)  # [B]
    tokens_per_image = int(visual.sum()) // len(pixels) if pixels is not None else 1
    ends = (visual // max(tokens_per_image, 1)).cumsum(0).tolist()  # [B], images up to and with each sample
    for start in range(0, len(ids), samples):
        rows = slice(start, start + samples)
        seen = batch["attention_mask"][rows].any(dim=0).nonzero()
        columns = slice(int(seen[0]), int(seen[-1]) + 1)  # without the padding that only longer samples needed
        part = {name: x[rows, columns] for name, x in batch.items() if name != "pixel_values"}
        if pixels is not None:
            images = pixels[ends[start - 1] if start else 0 : ends[min(start + samples, len(ids)) - 1]]
            if len(images):
                part["pixel_values"] = images
        yield part


def random_state(device: torch.device) -> list[Tensor]:
    """The global generators' state that dropout on ``device`` draws from."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return states


def set_random_state(states: Sequence[Tensor], device: torch.device) -> None:
    """Back to what ``random_state`` gave."""
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)


def out_of_memory(recipe: Recipe, device: torch.device, when: str, found: str) -> UserError:
    """The error that ends a run for want of memory, with the estimate's advice.

    Args:
        when: what was being done, as in "with a micro-batch of 1".
        found: the library's own message; its first line is shown.
    """
    total, others = memory_of(device)
    where = "the card" if device.type == "cuda" else "this machine"
    lines = [f"out of memory {when}" + (f": {found.strip().splitlines()[0]}" if found.strip() else "")]
    if others > GIB:
        lines.append(f"of {where}'s {total / GIB:.1f} GiB other programs hold {others / GIB:.1f}; close them, or:")
    try:
        lines += _advice(recipe, device, where, total - others)
    except Exception as error:  # whatever it is, memory is what the user must hear of
        lines.append(f"no estimate can be made ({type(error).__name__}: {error})")
    return UserError("\n".join(lines))


@contextmanager
def told_when_out_of_memory(recipe: Recipe, device: torch.device, when: str) -> Iterator[None]:
    """Turns a device that has no memory left, in what is done inside, into ``out_of_memory``'s error."""
    try:
        yield
        return
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        found = str(error)
    raise out_of_memory(recipe, device, when, found)


def _advice(recipe: Recipe, device: torch.device, where: str, available: int) -> Iterator[str]:
    # Imported here: the estimate rehearses a training step, and this is a part of one.
    from basic_lite.model.frontend import load_frontend
    from basic_lite.rehearsal import Machine, Rehearser
    from basic_lite.tools.estimate import Estimate, advice_lines, advise

    smallest = recipe.model_copy(update={"training": recipe.training.model_copy(update={"micro_batch": 1})})
    target = Machine.card(smallest) if device.type == "cuda" else Machine.this_cpu(smallest)
    stage = Rehearser(smallest, load_frontend(smallest.model), target)
    rehearsal = stage.rehearse()
    needed = rehearsal.needed_bytes
    needs, has = f"{needed / GIB:.2f} GiB", f"{available / GIB:.2f}"
    yield f"by the estimate this recipe needs {needs} at a micro-batch of 1; {where} has {has} for it"
    if needed < available / 2:
        yield (
            "so it isn't the model that takes it: look for a limit on this process (ulimit, a container's), for many "
            "or very large images, or lower data.workers"
        )
        return
    if needed <= available:
        yield "so your samples take more than it assumes (several images each?), or memory is fragmented"
    # It has to be less than what there is, and less than what was not enough.
    budget = min(available, int(needed * ENOUGH_LESS))
    yield "to need less, cheapest first, each on top of those before:"
    yield from advice_lines(list(advise(stage, Estimate(rehearsal, budget / GIB, None))))


def memory_of(device: torch.device) -> tuple[int, int]:
    """Bytes that the device has, and bytes that other processes hold of them.

    On a GPU nobody says which process holds what: this one's context counts as the estimate's allowance, and the pages
    of a paged optimizer can't be told from another program's.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return total, max(total - free - torch.cuda.memory_reserved(device) - ALLOWANCE_BYTES, 0)
    import psutil

    host = psutil.virtual_memory()
    return host.total, max(host.total - host.available - psutil.Process().memory_info().rss, 0)
