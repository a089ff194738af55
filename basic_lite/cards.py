"""Graphics cards and their ceilings by the data sheet: products and bytes a second. Nothing heavy is imported here."""

import re
from dataclasses import dataclass

# Where no host is at hand. Assumed.
LAUNCH_S = 25e-6
# The shares of a data sheet's ceilings that large operations are assumed to reach. An H200 reached .71 and .89.
PRODUCTS_SHARE, BYTES_SHARE = 0.8, 0.9


@dataclass(frozen=True)
class Card:
    """What a card can do at most.

    Attributes:
        tflops: products a second, in 10¹², in the type that ``model.dtype: auto`` takes.
        bytes_a_second: of its memory, in 10⁹, reads and writes together.
        link_a_second: between it and the host's pinned memory, in 10⁹ bytes; 0: it is the host.
        gib: its memory as it is sold.
        watts: of the board at most.
        measured: its ceilings are what large operations reached on it, and not a data sheet's.
        launch_s: seconds that its host takes to start an operation.
    """

    name: str
    tflops: float
    bytes_a_second: float
    link_a_second: float
    gib: float
    watts: float
    measured: bool = False
    launch_s: float = LAUNCH_S

    @property
    def reached_flops(self) -> float:
        """Operations a second of a large product, 2 a multiply-add."""
        return self.tflops * 1e12 * (1 if self.measured else PRODUCTS_SHARE)

    @property
    def reached_bytes(self) -> float:
        """Bytes a second of a large copy."""
        return self.bytes_a_second * 1e9 * (1 if self.measured else BYTES_SHARE)


# NVIDIA's data sheets and whitepapers: bfloat16, dense, summed in float32. A GeForce and the A10G sum in float32 at
# half the rate that they have in float16, which is twice their plain float32 rate; the others sum at the full rate. The
# link is four fifths of what PCIe 3, 4 and 5 carry over a card's 8 or 16 lanes. A100, H100 and H200 are the SXM
# modules; as PCIe cards they reach less. Cards older than RTX 30 (T4, V100) have no bfloat16 and run another step than
# is counted. A 4060 Ti and a 5060 Ti of 8 GB are as fast. The Super cards and the RTX 5060, 5060 Ti and 5070 Ti are
# from reports of their launch (svethardware.cz, news 60300, and reviews). The RTX 3050 6GB has no whitepaper either:
# 2304 cores at 1.47 GHz, 96 bits of 14 Gbit/s and 70 W are what was reported at its launch (hwsetup.it, news 35282).
# Its 8 lanes are assumed: the card of 8 GB has so many.
CARDS = (
    Card("RTX 3050 6GB", 13.5, 168, 12.6, 6, 70),
    Card("RTX 3060 Ti", 32.4, 448, 25.2, 8, 200),
    Card("RTX 3070", 40.6, 448, 25.2, 8, 220),
    Card("RTX 3070 Ti", 43.5, 608, 25.2, 8, 290),
    Card("RTX 4060", 30.2, 272, 12.6, 8, 115),
    Card("RTX 5060", 38.4, 448, 25.2, 8, 145),
    Card("RTX 3080", 59.5, 760, 25.2, 10, 320),
    Card("RTX 3060", 25.5, 360, 25.2, 12, 170),
    Card("RTX 3080 Ti", 68.2, 912, 25.2, 12, 350),
    Card("RTX 4070", 58.3, 504, 25.2, 12, 200),
    Card("RTX 4070 Super", 71, 504, 25.2, 12, 220),
    Card("RTX 4070 Ti", 80.2, 504, 25.2, 12, 285),
    Card("RTX 5070", 61.7, 672, 50.4, 12, 250),
    Card("RTX 4060 Ti", 44.1, 288, 12.6, 16, 165),
    Card("RTX 4070 Ti Super", 88.2, 672, 25.2, 16, 285),
    Card("RTX 4080", 97.5, 717, 25.2, 16, 320),
    Card("RTX 4080 Super", 104.4, 736, 25.2, 16, 320),
    Card("RTX 5060 Ti", 47.4, 448, 25.2, 16, 180),
    Card("RTX 5070 Ti", 87.9, 896, 50.4, 16, 300),
    Card("RTX 5080", 112.6, 960, 50.4, 16, 360),
    Card("L4", 121, 300, 25.2, 24, 72),
    Card("A10G", 70, 600, 25.2, 24, 300),
    Card("RTX 3090", 71.2, 936, 25.2, 24, 350),
    Card("RTX 3090 Ti", 80, 1008, 25.2, 24, 450),
    Card("RTX 4090", 165.2, 1008, 25.2, 24, 450),
    Card("RTX 5090", 209.5, 1792, 50.4, 32, 575),
    Card("RTX A6000", 154.8, 768, 25.2, 48, 300),
    Card("L40S", 362, 864, 25.2, 48, 350),
    Card("A100 80GB", 312, 2039, 25.2, 80, 400),
    Card("H100 80GB", 989.4, 3350, 50.4, 80, 700),
    Card("H200", 989.4, 4800, 50.4, 141, 700),
)


def plain_name(name: str) -> str:
    """A card's name as names are compared: small letters, no spaces, nothing of its maker, slot or kind of memory.

    "PCIe" and "HBM2e" stay: such a card is slower than the module of its name.
    """
    return re.sub(r"nvidia|geforce|rtx|sxm\d|hbm3|[\s_-]", "", name.lower())


def named_card(name: str) -> Card | None:
    """The card of the table with a name, as people or the driver write it."""
    return next((card for card in CARDS if plain_name(card.name) == plain_name(name)), None)


def card_of(gib: float) -> Card:
    """The fastest card of the table with the least memory that is enough; the largest one where none is."""
    enough = [card for card in CARDS if card.gib >= gib - 0.5] or CARDS[-1:]
    least = min(card.gib for card in enough)
    return max((card for card in enough if card.gib == least), key=lambda card: card.tflops)
