"""The card that ``--gpu`` asks for: by its memory, or by its name in the table."""

import re
from dataclasses import dataclass

from basic_lite.choices import meant
from basic_lite.errors import UserError
from basic_lite.rehearsal.cards import CARDS, Card

# GiB of a card.
_LEAST_GIB, _MOST_GIB = 0.01, 1000
# From here on a number is likely to be MiB, as nvidia-smi gives it.
_MIB_FROM = 4000
# A card that is sold as 24 GB has 24 GiB, so GB is read as GiB.
_UNITS = {"": 1, "g": 1, "gb": 1, "gib": 1, "m": 1024, "mb": 1024, "mib": 1024}
_SIZE = re.compile(r"(?P<number>[+-]?(?:\d+(?:[.,]\d*)?|[.,]\d+))(?P<unit>[a-z]*)")
_MAKERS = re.compile("nvidia|geforce|rtx")
_TAKES = "give its memory, as in --gpu 24 or --gpu 24GB"


@dataclass(frozen=True)
class AskedCard:
    """A card's memory, and its ceilings where it was named. None: nothing was asked for."""

    gib: float | None = None
    card: Card | None = None


def asked_card(text: str) -> AskedCard:
    """Read `24`, `24GB`, `24 GiB`, `24564MiB`, `rtx4090`, `RTX 4090` or `4090`.

    Raises:
        UserError: it is none of these, or a memory that no card has.
    """
    plain = _plain(text)
    named = {_plain(card.name): card for card in CARDS}
    if (card := named.get(plain)) is not None:
        return AskedCard(card.gib, card)
    size = _SIZE.fullmatch(re.sub(r"\s+", "", text.lower()))
    if size is None or size["unit"] not in _UNITS:
        raise UserError(
            f"--gpu is {text!r}, which isn't in the table of cards{_near(plain, named)}; {_TAKES}{_names()}"
        )
    gib = float(size["number"].replace(",", ".")) / _UNITS[size["unit"]]
    require_memory(gib)
    return AskedCard(gib)


def require_memory(gib: float) -> None:
    """Refuse a memory that no card has.

    Raises:
        UserError: it is too little, too much, or no number.
    """
    if _LEAST_GIB <= gib <= _MOST_GIB:  # NaN is neither
        return
    unit = f"; if these are MiB: --gpu {gib:g}MiB" if _MIB_FROM <= gib < 1024 * _MOST_GIB else ""
    raise UserError(f"--gpu is {gib:g} GiB, which no card has; {_TAKES}{unit}")


def _plain(name: str) -> str:
    return _MAKERS.sub("", re.sub(r"[\s_-]+", "", name.lower()))


def _near(plain: str, named: dict[str, Card]) -> str:
    """What was meant: a name that begins so, else one that is spelled like it. A number of another card is no slip."""
    begins = [card.name for name, card in named.items() if plain and name.startswith(plain)]
    close = None if re.fullmatch(r"\d{4}(ti|super|tisuper)?", plain) else meant(plain, named)
    near = begins or ([named[close].name] if close else [])
    return f" (did you mean {near[0]}?)" if near else ""


def _names() -> str:
    return f", or one of its names: {', '.join(card.name for card in CARDS)}"
