"""The card that ``--gpu`` asks for: by its memory, or by its name in the table."""

import re
from difflib import get_close_matches

from basic_lite.cards import CARDS, Card, named_card, plain_name
from basic_lite.errors import UserError

# GiB of a card.
_LEAST_GIB, _MOST_GIB = 0.01, 1000
# From here on a number is likely to be MiB, as nvidia-smi gives it.
_MIB_FROM = 4000
# A card that is sold as 24 GB has 24 GiB, so GB is read as GiB.
_UNITS = {"": 1, "g": 1, "gb": 1, "gib": 1, "m": 1024, "mb": 1024, "mib": 1024}
_SIZE = re.compile(r"(?P<number>[+-]?(?:\d+(?:[.,]\d*)?|[.,]\d+))\s*(?P<unit>[a-z]*)")
_THOUSANDS = re.compile(r"(\d),(\d{3})(?=\s*m)")  # 24,576 MiB
_WITH_MEMORY = re.compile(r"(?P<name>.+?)[\s_-]+(?P<gib>\d+)\s*g(?:i?b)?", re.IGNORECASE)
_TAKES = "give its memory, as in --gpu 24 or --gpu 24GB"


def asked_card(text: str) -> Card | float:
    """Read `24`, `24GB`, `24564MiB`: a memory in GiB; or `rtx4090`, `4090`, `RTX 4090 24GB`: that card.

    Raises:
        UserError: it is none of these, or a memory that no card has.
    """
    if (card := named_card(text) or _with_its_memory(text)) is not None:
        return card
    size = _SIZE.fullmatch(_THOUSANDS.sub(r"\1\2", text.lower().strip()))
    if size is None or size["unit"] not in _UNITS:
        raise UserError(f"--gpu is {text!r}, which isn't in the table of cards{_near(text) or _alike(text)}; {_TAKES}")
    gib = float(size["number"].replace(",", ".")) / _UNITS[size["unit"]]
    require_memory(gib, _near(text))
    return gib


def _with_its_memory(text: str) -> Card | None:
    """The card of a name with that card's own memory behind it, as shops write it; with another memory it is none."""
    parts = _WITH_MEMORY.fullmatch(text.strip())
    card = None if parts is None else named_card(parts["name"])
    return card if card is not None and parts is not None and card.gib == int(parts["gib"]) else None


def require_memory(gib: float, near: str = "") -> None:
    """Refuse a memory that no card has.

    Args:
        near: what else may have been meant.

    Raises:
        UserError: it is too little, too much, or no number.
    """
    if _LEAST_GIB <= gib <= _MOST_GIB:  # NaN is neither
        return
    unit = f"; if these are MiB: --gpu {gib:g}MiB" if _MIB_FROM <= gib < 1024 * _MOST_GIB else ""
    raise UserError(f"--gpu is {gib:g} GiB, which no card has{near}; {_TAKES}{unit}")


def _near(text: str) -> str:
    """The first card whose name begins so, else the one whose name is in the text, with other words beside it.

    That one is another card, and only named: a 3090 Ti isn't a 3090. H200 is no slip of H100.
    """
    plain = plain_name(text)
    begins = next((card.name for card in CARDS if len(plain) > 2 and plain_name(card.name).startswith(plain)), None)
    if begins:
        return f" (did you mean {begins}?)"
    inside = [card for card in CARDS if re.search(rf"(?<![a-z0-9]){plain_name(card.name)}(?![0-9])", _words(text))]
    nearest = max(inside, key=lambda card: len(card.name), default=None)
    return f" (the nearest name there is {nearest.name}, another card)" if nearest else ""


def _alike(text: str) -> str:
    """The three cards whose names are spelled most like a text."""
    names = {plain_name(card.name): card.name for card in CARDS}
    near = [names[plain] for plain in get_close_matches(plain_name(text), names, 3)]
    return f" (its names nearest to that: {', '.join(near)})" if near else ""


def _words(text: str) -> str:
    """A text as names are compared, with spaces between its words but before "Ti"."""
    return re.sub(r"\s+", " ", re.sub(r"\s+(?=ti\b)", "", re.sub(r"\b(nvidia|geforce|rtx)\b|[_-]", " ", text.lower())))
