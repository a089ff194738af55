"""``basic-lite data``: look at data, say what it is, write a recipe for it."""
