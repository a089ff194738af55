"""A projector to start from: it says of each patch the word for its colour.

A fresh projector's tokens are noise, and a language model needs more steps to read them than a test has time for. So
the projector is fitted first, without the language model: from a patch's features to the word embedding of the colour
that most of the patch's pixels are nearest to. It takes seconds, and is written as a bundle, as stage 1 leaves one.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from basic_lite.data.images import ImageRef
from basic_lite.data.pixels import fit, pixels
from basic_lite.model.load import Loaded, load_base
from basic_lite.recipe.rules import changed_recipe
from basic_lite.recipe.schema import Recipe
from basic_lite.training.bundle import write_bundle
from bench.world.colours import COLOURS, nearest_colours
from bench.world.stamps import pictures
from tests.support.bundles import CPU, facts

STEPS = 300
_PATCHES = 1024


def write_projector(folder: Path, recipe: Recipe) -> None:
    """Fit the projector of the recipe's model on its training pictures, and write the bundle."""
    torch.manual_seed(0)
    loaded = load_base(recipe, CPU)
    projector = loaded.parts.projector.requires_grad_(True)
    words = [loaded.tokenizer.encode(f" {name}", add_special_tokens=False)[0] for name in COLOURS]
    table = loaded.parts.embeddings.weight[words].detach()  # [colours, D]
    features, colours = _patches(loaded, recipe)
    optimizer = torch.optim.AdamW(projector.parameters(), lr=1e-3, weight_decay=0.0)
    for _ in range(STEPS):
        chosen = torch.randint(len(features), (_PATCHES,))
        functional.mse_loss(projector(features[chosen]), table[colours[chosen]]).backward()
        optimizer.step()
        optimizer.zero_grad()
    # It has no adapter, so its recipe has none.
    alone = changed_recipe(recipe, {"lora.enabled": False})
    write_bundle(folder, loaded.parts, loaded.tokenizer, alone, facts(STEPS, STEPS))


@torch.no_grad()
def _patches(loaded: Loaded, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """The training pictures' patches: features [n, D_v] as the projector gets them, and each one's colour [n]."""
    data, how = pictures(), recipe.data.image_fit
    processor = loaded.frontend.image_processor
    config = loaded.model.config
    side, patch = config.vision_config.image_size, config.vision_config.patch_size
    features, colours = [], []
    for record in json.loads(data.train.read_text(encoding="utf-8")):
        ref = ImageRef(record["image"], str(data.images))
        states = loaded.parts.vision_tower(pixels((ref,), processor, how), output_hidden_states=True).hidden_states
        features.append(states[config.vision_feature_layer][0, -loaded.frontend.tokens_per_image :])
        with Image.open(data.images / record["image"]) as picture:
            seen = fit(picture.convert("RGB"), how, processor).resize((side, side), Image.Resampling.BICUBIC)
        squares = nearest_colours(seen).reshape(side // patch, patch, side // patch, patch).swapaxes(1, 2)
        counts = [np.bincount(square.ravel(), minlength=len(COLOURS)) for row in squares for square in row]
        colours.append(torch.tensor(np.array(counts)).argmax(-1))
    return torch.cat(features), torch.cat(colours)
