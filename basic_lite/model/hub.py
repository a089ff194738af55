"""Whether models can be fetched from the hub: asked once, so that nobody waits for each file of it in vain."""

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


def offline_setting() -> str:
    """The environment variable that forbids the hub; empty: none does."""
    return next((name for name in _OFFLINE if os.environ.get(name, "").upper() in _YES), "")
