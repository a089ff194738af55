"""Recipes: their keys, and how a file becomes a checked ``Recipe``. No torch here, so reading one is instant."""

from basic_lite.recipe.keys import KeyDoc, describe_keys, nearest_key
from basic_lite.recipe.load import check_recipe, dump_recipe, flat_values, load_recipe
from basic_lite.recipe.schema import Recipe
from basic_lite.recipe.shipped import find_recipe, shipped_recipe, shipped_recipes

__all__ = [
    "KeyDoc",
    "Recipe",
    "check_recipe",
    "describe_keys",
    "dump_recipe",
    "find_recipe",
    "flat_values",
    "load_recipe",
    "nearest_key",
    "shipped_recipe",
    "shipped_recipes",
]
