"""Which formats of pictures are read; HEIC, as telephones write it, where pillow-heif is installed."""

from functools import cache

from PIL import Image, features

# Pillow reads more than pictures, and for some of it starts programs (PostScript: Ghostscript). Whatever a file is
# called, it is read as one of these or not at all.
_FORMATS = (
    "JPEG", "MPO", "PNG", "GIF", "WEBP", "BMP", "DIB", "TIFF", "HEIF", "AVIF", "JPEG2000", "PPM", "TGA", "ICO", "PCX",
    "QOI", "SGI", "SUN", "DDS", "PSD", "XBM", "XPM",
)  # fmt: skip
# How these files begin, whatever they are called: telephones' pictures are often renamed to .jpg.
_HEIC = tuple(b"ftyp" + brand for brand in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"))
_AVIF = (b"ftypavif", b"ftypavis")


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


def lacking(head: bytes) -> str | None:
    """What to install for a picture to be read that begins with ``head``; None where nothing is missing."""
    if head[4:].startswith(_HEIC) and not register_heic():
        return 'HEIC needs pillow-heif: pip install pillow-heif (or "basic-lite[heic]"); or save the pictures as JPEG'
    if head[4:].startswith(_AVIF) and not features.check("avif"):
        return 'AVIF needs a newer Pillow: pip install -U "pillow>=11.3"; or save the pictures as JPEG'
    return None
