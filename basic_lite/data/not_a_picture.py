"""What a file is that is called a picture and doesn't open as one: told by its first bytes."""

# Bytes that are read.
HEAD = 256
_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_STARTS = {
    b"version https://git-lfs": "it is a pointer of Git LFS, and `git lfs pull` fetches the picture itself",
    b"%pdf": "it is a PDF; save its pages as JPEG",
    b"pk\x03\x04": "it is a zip archive; unpack it first",
}
_PAGES = (b"<!doctype html", b"<html", b"<head", b"<body")


def is_heic(head: bytes) -> bool:
    """Whether a file begins as HEIC does, whatever it is called."""
    return head[4:8] == b"ftyp" and head[8:12] in _BRANDS


def what_it_is(head: bytes) -> str | None:
    """What a file is instead of a picture; None: nothing that is known.

    Args:
        head: its first ``HEAD`` bytes.
    """
    if not head:
        return "the file is empty"
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if start.startswith(_PAGES):
        return "it is a web page, as a server sends it in place of a picture that it doesn't give"
    if b"<svg" in start:
        return "it is an SVG drawing; save it as PNG"
    return next((what for first, what in _STARTS.items() if start.startswith(first)), None)
