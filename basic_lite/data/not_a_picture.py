"""What a file is that is called a picture and doesn't open as one, and what mends it: told by its first bytes."""

# Bytes that are read.
HEAD = 256
_PAGE = ("it is a web page, as a server sends it in place of a picture that it doesn't give", "fetch it again")
# Files' first letters, all in small ones.
_STARTS = {
    b"version https://git-lfs": ("it is a pointer of Git LFS", "fetch the picture itself with `git lfs pull`"),
    b"%pdf": ("it is a PDF", "save its pages as JPEG"),
    b"pk\x03\x04": ("it is a zip archive", "unpack it first"),
    b"<!doctype html": _PAGE,
    b"<html": _PAGE,
    b"<head": _PAGE,
    b"<body": _PAGE,
}
# Videos': what stands behind the first four bytes of MP4 and QuickTime files, and the beginning of Matroska and WebM.
_VIDEO = tuple(b"ftyp" + kind for kind in (b"iso", b"mp4", b"avc", b"dash", b"qt", b"3g", b"M4V", b"MSNV", b"mmp4"))
_MATROSKA = b"\x1a\x45\xdf\xa3"


def what_it_is(head: bytes) -> tuple[str, str] | None:
    """What a file is instead of a picture, and what to do; None: nothing that is known.

    Args:
        head: its first ``HEAD`` bytes.
    """
    if not head:
        return "the file is empty", "fetch it again, or leave the record out"
    if head[4:].startswith(_VIDEO) or head.startswith(_MATROSKA) or (head[:4] == b"RIFF" and head[8:12] == b"AVI "):
        return "it is a video", "save a frame of it as JPEG"
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    found = next((found for first, found in _STARTS.items() if start.startswith(first)), None)
    return found or (("it is an SVG drawing", "save it as PNG") if b"<svg" in start else None)
