"""Units of memory, and sizes as people read them. No torch, so that commands that only list files answer at once."""

MIB = 2**20
GIB = 2**30


def size_text(size_bytes: int) -> str:
    """Bytes as people read them: 12 KiB, 340 MiB, 13.49 GiB."""
    if size_bytes < MIB:
        return f"{size_bytes / 1024:.0f} KiB"
    return f"{size_bytes / GIB:.2f} GiB" if size_bytes >= GIB else f"{size_bytes / MIB:.0f} MiB"
