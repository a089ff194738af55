"""What a recipe names and a run begins with: models, data, an earlier run. All that is missing is told at once.

Nothing heavy is imported here before a model is looked at.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from basic_lite.console import Say
from basic_lite.data.names import EVAL, TRAIN
from basic_lite.data.sources import require_sources
from basic_lite.errors import UserError, all_at_once, each_of, in_one
from basic_lite.model.hub import file_of
from basic_lite.recipe.fetched import mend_of_missing_data
from basic_lite.recipe.schema import ModelSection, Recipe
from basic_lite.training.bundle_files import look_at_bundle
from basic_lite.training.start_names import earlier_run_of, resolve_start


def look_at_inputs(recipe: Recipe, *, plan: bool) -> None:
    """Refuse missing data and a missing earlier run before torch is imported, which takes seconds.

    Where a model's configuration isn't on this machine, nothing is said yet: the look at the models tells all at once.

    Args:
        plan: the run is only shown.

    Raises:
        UserError: as ``require_inputs``, or ``require_inputs_of_plan``.
    """
    require = require_inputs_of_plan if plan else require_inputs
    recipe = with_start(recipe, lambda text: None)
    try:
        require(recipe, models=False)
    except UserError:
        if all(map(_is_here, filter(None, (recipe.model.base, recipe.model.vision, recipe.model.llm)))):
            raise


def _is_here(model: str) -> bool:
    """Whether a model's configuration is on this machine."""
    try:
        return file_of(model, "config.json", fetch=False) is not None
    except (OSError, ValueError):
        return False


def require_inputs(recipe: Recipe, *, earlier: bool = True, models: bool = True) -> None:
    """See that what a recipe names is there. Configurations are read; no weights, no records, no data sets of the hub.

    Args:
        earlier: whether the run begins with the weights of the earlier one that the recipe names.
        models: whether they are looked at.

    Raises:
        UserError: names all that is missing or of a wrong kind, each with its key and a mend.
    """
    named = earlier_run_of(recipe) if earlier else None
    looks = [partial(look_at_bundle, *named, Path(recipe.output))] if named is not None else []
    all_at_once(*looks, *(_looks_at_models(recipe.model) if models else ()), *_looks_at_data(recipe))


def with_start(recipe: Recipe, say: Say, *, resume: bool = False) -> Recipe:
    """The recipe with what ``model.start`` leaves to it (``resolve_start``).

    Raises:
        UserError: the start is missing, or the recipe contradicts it; with it all else that is missing.
    """
    try:
        return resolve_start(recipe, say, resume=resume)
    except UserError as error:
        try:
            all_at_once(*_looks_at_models(recipe.model), *_looks_at_data(recipe))
        except UserError as others:
            raise in_one([*each_of(error), *each_of(others)]) from None
        raise


def require_inputs_of_plan(recipe: Recipe, *, models: bool = True) -> None:
    """The same for a plan that is only shown: a projector that isn't made yet is told where more is missing, not alone.

    Raises:
        UserError: as ``require_inputs``.
    """
    try:
        require_inputs(recipe, earlier=recipe.model.start is not None, models=models)
    except UserError:
        require_inputs(recipe, models=models)
        raise


def _looks_at_models(section: ModelSection) -> Iterator[Callable[[], object]]:
    if section.base is None and None in (section.vision, section.llm):
        return  # `model.start` names them
    from basic_lite.model.checks import require_safetensors
    from basic_lite.model.frontend import composed_config, llava_config_of

    if section.base is not None:
        yield partial(llava_config_of, section.base)
        yield partial(require_safetensors, section.base, "model.base")
    else:
        yield partial(composed_config, section)


def _looks_at_data(recipe: Recipe) -> Iterator[Callable[[], object]]:
    for key, section in ((TRAIN, recipe.data.train), (EVAL, recipe.data.eval)):
        if section is not None:
            mend = partial(mend_of_missing_data, name=recipe.name)
            yield partial(require_sources, section, Path.cwd(), key, mend)
