"""What a task of lmms-eval shows: still pictures are taken, all else is refused."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from basic_lite.data.images import ImageRef
from basic_lite.data.memory import picture_of
from basic_lite.data.problems import BadImage, RecordProblem
from basic_lite.endings import PICTURE_ENDINGS


def shown_by(visuals: object, place: str) -> list[Any]:
    """The pictures among what a task's `doc_to_visual` gives; none for a question of text alone.

    Raises:
        BadImage: something is no still picture.
    """
    if visuals is None:
        return []
    found = list(visuals) if isinstance(visuals, list | tuple) else [visuals]
    for one in found:
        if kind := _kind(one):
            raise BadImage(f"it shows {kind}, and a run sees still pictures alone", "choose another task", place)
    return found


def _kind(visual: object) -> str:
    """What it is, where it is no picture: a video, or a sound."""
    if isinstance(visual, str) and not visual.startswith("data:"):
        return "" if Path(visual).suffix.lower() in PICTURE_ENDINGS else "a video or a sound"
    if isinstance(visual, Mapping):
        return "a sound" if "array" in visual else "" if visual.get("bytes") is not None else "a video or a sound"
    # An array of frames, or a decoder of them.
    return "a video" if hasattr(visual, "ndim") or hasattr(visual, "get_batch") else ""


def references(visuals: object, place: str) -> tuple[ImageRef, ...]:
    """The same pictures as records have them.

    Raises:
        BadImage: one is none, or can't be read.
    """
    try:
        return tuple(picture_of(one) for one in shown_by(visuals, place))
    except RecordProblem as problem:
        raise problem.at(place) from problem.__cause__
