"""What BASIC sees in an answer of a run: the maps of its pictures' visual tokens, with the answer's own attention."""

from collections.abc import Sequence

import torch

from basic_lite.data.tokens import IGNORE
from basic_lite.supervision.picture_maps import PictureMaps
from basic_lite.tools.chat.dialogue import Message, pictures_of
from basic_lite.tools.chat.of_run import RunSpeaker, record_of
from basic_lite.training.maps import reading_supervision, run_maps


def look_inside(speaker: RunSpeaker, messages: Sequence[Message]) -> list[PictureMaps]:
    """What the last answer saw in each picture of the conversation: one forward of all of it.

    Args:
        messages: end with the answer; there is a picture among them.

    Raises:
        UserError: the vocabulary table can't be used.
    """
    record = record_of(messages)
    chat, loaded = speaker.chat, speaker.loaded
    # No length is too long here: the model has just read it.
    encoded = chat.encode(record, 2**31)
    asked = len(chat.prompt(record))
    target = speaker.bundle.manifest.get("target")
    supervision = reading_supervision(loaded, speaker.recipe.supervision, target, lambda text: None)
    labels = torch.tensor([[IGNORE] * asked + encoded.labels[asked:]])
    batch = {**speaker.inputs(record, encoded.input_ids), "labels": labels}
    names = [image.name for image in pictures_of(messages)]
    return run_maps(loaded, supervision, batch, names, "response")
