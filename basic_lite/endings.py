"""Endings of files. Nothing heavy is imported here."""

# As they are looked for in folders.
PICTURE_ENDINGS = (
    ".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".heic", ".heif", ".avif", ".jfif",
)  # fmt: skip
# Of files that hold records.
TABLE_ENDINGS, JSON_ENDINGS = (".csv", ".tsv"), (".json", ".jsonl")
DATA_ENDINGS = (*TABLE_ENDINGS, *JSON_ENDINGS, ".parquet")
RECIPE_ENDINGS = (".yaml", ".yml")


def ends_as_picture(text: str) -> bool:
    """Whether a text ends as the name of a picture does."""
    return text.lower().endswith(PICTURE_ENDINGS)
