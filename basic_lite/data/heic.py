"""Which formats of pictures are read; HEIC, as telephones write it, where pillow-heif is installed."""

from functools import cache

from PIL import Image, features

from basic_lite.data.not_a_picture import is_heic

# Pillow reads more than pictures, and for some of it starts programs (PostScript: Ghostscript). Whatever a file is
# called, it is read as one of these or not at all.
_FORMATS = (
    "JPEG", "MPO", "PNG", "GIF", "WEBP", "BMP", "DIB", "TIFF", "HEIF", "AVIF", "JPEG2000", "PPM", "TGA", "ICO", "PCX",
    "QOI", "SGI", "SUN", "DDS", "PSD", "XBM", "XPM",
)  # fmt: skip
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


@cache
def formats() -> tuple[str, ...]:
    """Those of our formats that Pillow reads here."""
    register_heic()
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def lacking(name: str, head: bytes) -> str | None:
    """What to install for a picture to be read; None where nothing is missing.

    Args:
        head: its first bytes: telephones' pictures are often renamed to .jpg.
    """
    ending = name.lower()
    if (ending.endswith(_ENDINGS) or is_heic(head)) and not register_heic():
        return 'HEIC needs pillow-heif: pip install pillow-heif (or "basic-lite[heic]"); or save the pictures as JPEG'
    if ending.endswith(".avif") and not features.check("avif"):
        return 'AVIF needs a newer Pillow: pip install -U "pillow>=11.3"; or save the pictures as JPEG'
    return None
