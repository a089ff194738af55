"""What a path means that a command takes for data."""

import os
from collections.abc import Sequence
from pathlib import Path

from basic_lite.data.guess import source_of
from basic_lite.errors import UserError
from basic_lite.recipe.schema import SourceSection
from basic_lite.training.places import MANIFEST, RECIPE_YAML, is_run


def data_source(
    path: str | Path, *, image_dir: str | Path | None = None, limit: int | None = None, also: Sequence[Path] = ()
) -> SourceSection:
    """The data source that a path means (``source_of``), where it isn't a run, whose files could pass for data.

    Raises:
        UserError: it is a run or a bundle of one, or ``source_of`` refuses it.
    """
    place = Path(os.path.expanduser(path))
    bundle = os.path.isfile(place / MANIFEST)
    run = place.parent if bundle else place
    if os.path.isdir(run) and is_run(run):
        recipe = run / RECIPE_YAML
        named = f" ({recipe.as_posix()} names it under data.train)" if os.path.isfile(recipe) else ""
        raise UserError(
            f"{place} is {'part of a run' if bundle else 'a run'} and no data; give the folder or file of the data "
            f"itself, such as that which it was trained on{named}"
        )
    return source_of(place, image_dir=image_dir, limit=limit, also=also)
