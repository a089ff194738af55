"""What ``estimate --gpu`` takes: memory with and without units, names of cards; and what it says of the rest."""

from __future__ import annotations

import pytest

from basic_lite.asked_card import asked_card
from basic_lite.cards import CARDS, card_of
from basic_lite.errors import UserError


@pytest.mark.parametrize(
    "text", ["24", "24GB", "24 GB", "24gb", "24GiB", "24g", " 24.0 ", "24,0", "24576MiB", "24576 mb", "24,576 MiB"]
)
def test_a_memory_is_taken_with_any_unit(text: str) -> None:
    assert asked_card(text) == 24


@pytest.mark.parametrize(
    "text",
    [
        *["rtx4090", "RTX 4090", "4090", "NVIDIA GeForce RTX 4090", "rtx-4090", "RTX_4090"],
        *["RTX 4090 24GB", "4090 24 GB", " GeForce RTX 4090 24GiB ", "RTX_4090_24G"],  # its own memory behind it
    ],
)
def test_a_name_is_taken_as_people_write_it(text: str) -> None:
    assert asked_card(text) == card_of(24) and card_of(24).name == "RTX 4090"


@pytest.mark.parametrize(
    "text, name",
    [
        ("NVIDIA A100-SXM4-80GB", "A100 80GB"),
        ("NVIDIA H100 80GB HBM3", "H100 80GB"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA GeForce RTX 4070 Ti SUPER", "RTX 4070 Ti Super"),
    ],
)
def test_a_name_is_taken_as_the_driver_writes_it(text: str, name: str) -> None:
    assert getattr(asked_card(text), "name", None) == name


def test_each_card_of_the_table_is_found_by_its_name() -> None:
    assert [asked_card(card.name.lower()) for card in CARDS] == list(CARDS)
    assert [getattr(asked_card(text), "gib", None) for text in ("4060ti", "4060", "rtx 4060 Ti 16GB")] == [16, 8, 16]


@pytest.mark.parametrize(
    "text, said",
    [
        ("0", "--gpu is 0 GiB, which no card has; give its memory, as in --gpu 24 or --gpu 24GB"),
        ("-3", "--gpu is -3 GiB, which no card has; "),
        ("24564", "; if these are MiB: --gpu 24564MiB"),
        ("", "--gpu is '', which isn't in the table of cards; give its memory"),
        ("nan", "--gpu is 'nan', which isn't in the table of cards; "),
        ("3060 8GB", "--gpu is '3060 8GB', which isn't in the table of cards (the nearest name there is RTX 3060, an"),
        ("RTX 3090 Ti Super", "(the nearest name there is RTX 3090 Ti, another card); give its memory"),
        ("NVIDIA H100 PCIe", "which isn't in the table of cards; give its memory"),
        ("NVIDIA H100 80GB HBM2e", "which isn't in the table of cards"),  # the PCIe card
        ("Laptop RTX 4070", "(the nearest name there is RTX 4070, another card); give its memory"),
        ("NVIDIA GeForce RTX 4060 Ti 8GB", "(the nearest name there is RTX 4060 Ti, another card); give its memory"),
        ("24TB", "--gpu is '24TB', which isn't in the table of cards; "),
        ("rtx409", "(did you mean RTX 4090?)"),
        ("A100", "(did you mean A100 80GB?); give its memory"),
        ("L40", "(did you mean L40S?)"),
        ("rtx 3050 ti", "which isn't in the table of cards"),
        ("1080", "--gpu is 1080 GiB, which no card has; give"),
        ("3050", "--gpu is 3050 GiB, which no card has (did you mean RTX 3050 6GB?); give its memory"),
        ("rtx 5065", "table of cards (its names nearest to that: RTX 5060, RTX 5060 Ti); give its memory"),
        ("H20", "--gpu is 'H20', which isn't in the table of cards"),
        ("gtx 1080", "--gpu is 'gtx 1080', which isn't in the table of cards; give its memory"),
    ],
)
def test_what_it_does_not_take_is_refused_with_what_it_takes(text: str, said: str) -> None:
    with pytest.raises(UserError) as refused:
        asked_card(text)
    assert said in str(refused.value) and str(refused.value).count("RTX") <= 3
