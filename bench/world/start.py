"""Where the real world's stage 1 starts: a projector that says of each picture the words of its caption.

From a fresh projector the answers don't depend on the picture after 150 steps of 16 samples (5.14 nats, 5.17 with
another picture; one run), and a step takes 2.6 s of a CPU's core. So its last layer is fitted first, without the
language model: ridge regression from each patch's features, through the first layer's random weights, to the mean word
embedding of the picture's caption. What differs between pictures is as long as a word embedding then. It is written as
a run of stage 1 leaves it, and `model.projector` opens it.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from basic_lite.data.pixels import pixels
from basic_lite.data.records import Record
from basic_lite.data.sources import load_records
from basic_lite.model.load import Loaded, load_base
from basic_lite.recipe.schema import Recipe
from basic_lite.training.bundle import write_bundle

CPU = torch.device("cpu")
BATCH = 32
# Of the mean variance of the first layer's units.
RIDGE = 1e-3
# The first layer's fresh weights are so small that GELU hardly bends; made longer, it can tell more apart.
GAIN = 4.0


@torch.no_grad()
def write_start(run: Path, recipe: Recipe) -> None:
    """Fit the projector of the recipe's model on its training captions, and write it as the run ``run``.

    Args:
        recipe: of stage 1, without `model.projector`; its seed gives the first layer.
    """
    torch.manual_seed(recipe.seed)
    loaded = load_base(recipe, CPU)
    first, last = loaded.parts.projector.linear_1, loaded.parts.projector.linear_2
    first.weight.mul_(GAIN)
    records = list(load_records(recipe.data.train, root=Path.cwd()))
    units = torch.cat(
        [_units(loaded, recipe, records[i : i + BATCH]) for i in range(0, len(records), BATCH)]
    )  # [n, tokens, hidden]
    words = _caption_words(loaded, records)  # [n, D]
    last.weight.copy_(_ridge(units, words))
    # What all tokens share would only hide what differs.
    fitted = units.flatten(0, 1) @ last.weight.T
    scale = loaded.parts.embeddings.weight.float().norm(dim=1).mean() / (fitted - fitted.mean(0)).norm(dim=1).mean()
    last.weight.mul_(scale)
    last.bias.copy_(-scale * fitted.mean(0))
    facts = {"step": 0, "total_steps": 0, "data": {"epoch": 0.0, "samples": 0, "seed": recipe.seed, "fingerprint": "0"}}
    final = run / "final"
    final.mkdir(parents=True)
    machine = {"dtype": recipe.model.dtype}
    write_bundle(final, loaded.parts, loaded.tokenizer, recipe, {**facts, "machine": machine})


def _units(loaded: Loaded, recipe: Recipe, records: list[Record]) -> Tensor:
    """[pictures, tokens, hidden]: the projector's first layer after GELU."""
    config, processor = loaded.model.config, loaded.frontend.image_processor
    seen = torch.cat([pixels(record.images, processor, recipe.data.image_fit) for record in records])
    states = loaded.parts.vision_tower(seen, output_hidden_states=True).hidden_states
    features = states[config.vision_feature_layer][:, -loaded.frontend.tokens_per_image :]
    return functional.gelu(loaded.parts.projector.linear_1(features))


def _caption_words(loaded: Loaded, records: list[Record]) -> Tensor:
    """[records, D]: the mean embedding of each caption's words, less the mean over captions."""
    table = loaded.parts.embeddings.weight.float()
    ids = [loaded.tokenizer.encode(f" {r.turns[-1].text}", add_special_tokens=False) for r in records]
    means = torch.stack([table[row].mean(0) for row in ids])
    return means - means.mean(0)


def _ridge(units: Tensor, words: Tensor) -> Tensor:
    """[D, hidden]: the last layer's weights. Every token of a picture has the picture's target."""
    x = (units - units.mean((0, 1))).flatten(0, 1).double()
    y = words.double().repeat_interleave(units.shape[1], 0)
    gram = x.T @ x / len(x)
    gram += RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    return torch.linalg.solve(gram, x.T @ y / len(x)).T.float()
