"""Files of models, in a folder or on the hub. Whether the hub answers is asked once: nobody waits for each in vain."""

import os
import socket
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

_SECONDS = 3.0
# What the hub's client and transformers read, and what they take for yes.
_OFFLINE, _YES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"), {"1", "ON", "YES", "TRUE"}


def local_only(name: str | Path) -> bool:
    """Whether only what is on this machine can be read of a model: it is a folder, or the hub doesn't answer.

    The hub's own client tries each file six times, for half a minute.
    """
    return os.path.isdir(name) or hub_is_away()


@cache
def hub_is_away() -> bool:
    """Whether no connection to the hub can be made, or none is wanted. Through a proxy that can't be told: no."""
    if offline_setting():
        return True
    address = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    if getproxies() or not address.hostname:
        return False
    try:
        port = address.port or (80 if address.scheme == "http" else 443)
        socket.create_connection((address.hostname, port), timeout=_SECONDS).close()
    except (OSError, ValueError):
        return True
    return False


def file_of(name: str, file: str, *, fetch: bool = True) -> str | None:
    """Where a file of a model is on this machine, fetched if need be; None: it has no such file, or can't be reached.

    Args:
        name: folder or hub name.
        fetch: also look on the hub.

    Raises:
        OSError, ValueError: there is no such folder, and it is no name on the hub.
    """
    from transformers.utils import cached_file

    return cached_file(
        name,
        file,
        local_files_only=not fetch or local_only(name),
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        _raise_exceptions_for_gated_repo=False,
    )


def offline_setting() -> str:
    """The environment variable that forbids the hub; empty: none does."""
    return next((name for name in _OFFLINE if os.environ.get(name, "").upper() in _YES), "")
