"""Recipes: their keys, and how a file becomes a checked ``Recipe``. No torch here, so reading one is instant."""

from basic_lite.recipe.keys import describe_keys, nearest_key
from basic_lite.recipe.load import dump_recipe, find_recipe, flat_values, load_recipe, shipped_recipe, shipped_recipes
from basic_lite.recipe.schema import Recipe

__all__ = [
    "Recipe", "describe_keys", "dump_recipe", "find_recipe", "flat_values", "load_recipe", "nearest_key",
    "shipped_recipe", "shipped_recipes",
]  # fmt: skip
