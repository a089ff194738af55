"""Units of memory; sizes, and how many there are, as people read them.

No torch, so that commands that only list files answer at once.
"""

MIB = 2**20
GIB = 2**30


def size_text(size_bytes: int) -> str:
    """Bytes as people read them: 12 KiB, 340 MiB, 13.49 GiB."""
    if size_bytes < MIB:
        return f"{size_bytes / 1024:.0f} KiB"
    return f"{size_bytes / GIB:.2f} GiB" if size_bytes >= GIB else f"{size_bytes / MIB:.0f} MiB"


def number_of(count: int, what: str) -> str:
    """How many of a thing: 1 record, 2,000 records."""
    return f"{count:,} {what}{'s' * (count != 1)}"
