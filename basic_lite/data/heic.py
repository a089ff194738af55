"""HEIC pictures, as telephones take them: Pillow reads them where pillow-heif is installed."""

from functools import cache

from PIL import features

_ENDINGS = (".heic", ".heif")


@cache
def register_heic() -> bool:
    """Let Pillow open HEIC files in this process. Returns whether it can."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener()
    return True


def lacking(name: str) -> str | None:
    """What to install for a picture of this name to be read; None where nothing is missing."""
    ending = name.lower()
    if ending.endswith(_ENDINGS) and not register_heic():
        return 'HEIC needs pillow-heif: pip install pillow-heif (or "basic-lite[heic]"); or save the pictures as JPEG'
    if ending.endswith(".avif") and not features.check("avif"):
        return 'AVIF needs a newer Pillow: pip install -U "pillow>=11.3"; or save the pictures as JPEG'
    return None
