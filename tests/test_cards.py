"""The table of cards against what their chips are made of, and which of them stands for a memory."""

from __future__ import annotations

import pytest

from basic_lite.cards import BYTES_SHARE, CARDS, PRODUCTS_SHARE, Card, card_of

# Multiprocessors, boost clock in GHz, bfloat16 operations of one in a clock summed in float32; bits of the memory's
# bus, 10⁹ bits a second of each.
CHIPS = {
    "RTX 3050 6GB": (18, 1.47, 512, 96, 14),
    "RTX 3060": (28, 1.777, 512, 192, 15),
    "RTX 3060 Ti": (38, 1.665, 512, 256, 14),
    "RTX 3070": (46, 1.725, 512, 256, 14),
    "RTX 3070 Ti": (48, 1.77, 512, 256, 19),
    "RTX 3080": (68, 1.71, 512, 320, 19),
    "RTX 3080 Ti": (80, 1.665, 512, 384, 19),
    "RTX 3090": (82, 1.695, 512, 384, 19.5),
    "RTX 3090 Ti": (84, 1.86, 512, 384, 21),
    "RTX 4060": (24, 2.46, 512, 128, 17),
    "RTX 4060 Ti": (34, 2.535, 512, 128, 18),
    "RTX 4070": (46, 2.475, 512, 192, 21),
    "RTX 4070 Super": (56, 2.475, 512, 192, 21),
    "RTX 4070 Ti": (60, 2.61, 512, 192, 21),
    "RTX 4070 Ti Super": (66, 2.61, 512, 256, 21),
    "RTX 4080": (76, 2.505, 512, 256, 22.4),
    "RTX 4080 Super": (80, 2.55, 512, 256, 23),
    "RTX 4090": (128, 2.52, 512, 384, 21),
    "RTX 5060": (30, 2.497, 512, 128, 28),
    "RTX 5060 Ti": (36, 2.572, 512, 128, 28),
    "RTX 5070": (48, 2.512, 512, 192, 28),
    "RTX 5070 Ti": (70, 2.452, 512, 256, 28),
    "RTX 5080": (84, 2.617, 512, 256, 30),
    "RTX 5090": (170, 2.407, 512, 512, 28),
    "A10G": (80, 1.71, 512, 384, 12.5),
    "L4": (58, 2.04, 1024, 192, 12.5),
    "RTX A6000": (84, 1.8, 1024, 384, 16),
    "L40S": (142, 2.52, 1024, 384, 18),
    "A100 80GB": (108, 1.41, 2048, 5120, 3.186),
    "H100 80GB": (132, 1.83, 4096, 5120, 5.234),
    "H200": (132, 1.83, 4096, 6144, 6.25),
}


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_a_cards_ceilings_are_those_of_its_chip(card: Card) -> None:
    units, ghz, operations, bits, rate = CHIPS[card.name]
    assert card.tflops == pytest.approx(units * ghz * operations / 1e3, rel=0.015)
    assert card.bytes_a_second == pytest.approx(bits * rate / 8, rel=0.005)
    # A PCIe of 3 to 5, and a board that any of them could be.
    assert 12 < card.link_a_second < 52 and 50 <= card.watts <= 700


def test_each_card_is_there_once_the_smallest_first() -> None:
    assert len({card.name for card in CARDS}) == len(CARDS) == len(CHIPS)
    assert [card.gib for card in CARDS] == sorted(card.gib for card in CARDS)


@pytest.mark.parametrize(
    "gib, name",
    [
        (4, "RTX 3050 6GB"),
        (6, "RTX 3050 6GB"),
        (8, "RTX 3070 Ti"),
        (10, "RTX 3080"),
        (11.6, "RTX 4070 Ti"),
        (16, "RTX 5080"),
        (24, "RTX 4090"),
        (40, "L40S"),
        (80, "H100 80GB"),
        (141, "H200"),
    ],
)
def test_a_card_for_a_memory(gib: float, name: str) -> None:
    assert card_of(gib).name == name


def test_a_share_is_assumed_of_a_data_sheet_and_of_nothing_measured() -> None:
    sheet = Card("one", 100, 1000, 25, 24, 300)
    assert (sheet.reached_flops, sheet.reached_bytes) == (100e12 * PRODUCTS_SHARE, 1000e9 * BYTES_SHARE)
    here = Card("one", 100, 1000, 25, 24, 300, measured=True)
    assert (here.reached_flops, here.reached_bytes) == (100e12, 1000e9)
