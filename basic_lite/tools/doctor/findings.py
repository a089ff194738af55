"""What follows from the facts: what keeps training from running, what makes it slow, and what mends each."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from basic_lite.sizes import GIB, MIB, size_text
from basic_lite.tools.doctor.probe import Answer

# Of NF4 about 0.09.
FOUR_BIT_ERROR = 0.2
# A 7B model's weights are 14 GB; a run's bundles are far smaller.
_ROOM_FOR_WEIGHTS, _ROOM_FOR_RUN, _LEAST_ROOM = 16 * GIB, 4 * GIB, 512 * MIB
# Docker gives 64 MiB. Two workers hold a few batches of pictures.
_SHARED = GIB
# The smallest card that 7B is made for has a little less than 8 GiB.
_CARD, _MEMORY = 7.5 * GIB, 8 * GIB
# Of a card's memory: with less of it free, other programs are on it.
_MOST_TAKEN = 0.15
_ORDER = ("needed", "slow", "note")
_AGAIN = "a new environment and `pip install -e .` mend most of this"


@dataclass(frozen=True)
class Finding:
    """One thing to know.

    Attributes:
        kind: ``needed``: no training runs without it.
        text: what is there, and what mends it.
    """

    kind: Literal["needed", "slow", "note"]
    text: str


def findings(answers: Mapping[str, Answer]) -> list[Finding]:
    """All of them, those that matter most first.

    Args:
        answers: of the looks (``looks.LOOKS``), by name.
    """
    facts = answers["machine"].facts
    found = [*_software(answers), *_card(answers), *_memory(facts), *_disks(answers), *_settings(facts)]
    return sorted(found, key=lambda one: _ORDER.index(one.kind))


def _software(answers: Mapping[str, Answer]) -> Iterator[Finding]:
    if why := answers["machine"].failure:
        yield Finding("needed", f"the packages can't be looked at: {why}; {_AGAIN}")
    for name, wanted, version in answers["machine"].facts.get("unmet", []):
        install = f'pip install "{name}{wanted}"'
        if version is None:
            yield Finding("needed", f"{name} isn't installed: {install}")
        else:
            yield Finding("note", f"{name} {version} is none of the versions that were tested: {install}")
    if why := answers["torch"].failure:
        yield Finding("needed", f"torch can't be used: {why}; {_AGAIN}")
        return
    if why := answers["training"].failure:
        yield Finding("needed", f"the code of a training can't be imported: {why}; {_AGAIN}")
    if why := four_bit_fault(answers["four_bit"]):
        yield Finding(
            "needed",
            f"4-bit weights don't work: {why}; pip install --force-reinstall bitsandbytes, or train without them and "
            "in four times the memory (quantization.mode=none)",
        )


def four_bit_fault(answer: Answer) -> str:
    """What is wrong with 4-bit products; nothing where they are right."""
    if answer.failure:
        return answer.failure
    error = answer.facts["error"]
    return "" if error < FOUR_BIT_ERROR else f"a product was off by {100 * error:.0f} % of its size, and 9 % is usual"


def _card(answers: Mapping[str, Answer]) -> Iterator[Finding]:
    seen, triton = answers["torch"].facts, answers["triton"]
    if not seen:
        return
    if seen["unused"]:
        yield Finding("slow", seen["unused"])
        return
    if not seen["card"]:
        yield Finding(
            "slow", "no graphics card: the demo and small models train here (docs/PLATFORMS.md), 7B needs a card"
        )
        return
    if not seen["bf16"]:
        yield Finding(
            "slow",
            "the card has no bfloat16 (that begins with compute capability 8.0), so what isn't in 4 bit is float32: "
            "twice as large, and several times slower",
        )
    why = triton.failure or ("" if triton.facts["runs"] else triton.facts["why"])
    if why:
        yield Finding(
            "slow", f"plain PyTorch stands in for the kernels, since {why}; Triton needs a C compiler and a driver"
        )
    elif not triton.facts["liger"]:
        yield Finding("slow", f"the LLM goes without Liger's kernels, since {triton.facts['why_no_liger']}")
    free, total = seen["free_card_bytes"], seen["card_bytes"]
    if free < (1 - _MOST_TAKEN) * total:
        yield Finding(
            "note", f"other programs hold {size_text(total - free)} of the card: nvidia-smi shows them; end what can go"
        )
    if total < _CARD:
        yield Finding("note", "7B needs a card of 8 GB; basic-lite data … --recipe my_photos_small takes 4")


def _memory(facts: Mapping[str, Any]) -> Iterator[Finding]:
    if not facts:
        return
    shared = facts["shared_bytes"]
    if shared is not None and shared < _SHARED:
        yield Finding(
            "note",
            f"data workers share {size_text(shared)} (/dev/shm), which may be too little: start the container with "
            "--shm-size=4g, or set data.workers=0",
        )
    if facts["memory_bytes"] < _MEMORY:
        yield Finding("note", f"{size_text(facts['memory_bytes'])} of memory: take small models, or add swap space")


def _disks(answers: Mapping[str, Answer]) -> Iterator[Finding]:
    places = (
        ("runs_disk", "runs/", _ROOM_FOR_RUN, "start in another folder, or set output=FOLDER"),
        ("cache_disk", "the folder of downloaded weights", _ROOM_FOR_WEIGHTS, "HF_HOME=FOLDER names another place"),
    )
    for name, place, room, mend in places:
        facts, why = answers[name].facts, answers[name].failure
        if why:
            yield Finding("note", f"{place} can't be looked at: {why}; {mend}")
        elif not facts["writable"]:
            yield Finding("needed", f"{place} can't be written: {mend}")
        elif facts["free_bytes"] < room:
            kind: Literal["needed", "note"] = "needed" if facts["free_bytes"] < _LEAST_ROOM else "note"
            least = " for 7B" if name == "cache_disk" else ""
            yield Finding(
                kind,
                f"{place}: {size_text(facts['free_bytes'])} free, and {room // GIB} GiB are safe{least}: make room, "
                f"or {mend}",
            )


def _settings(facts: Mapping[str, Any]) -> Iterator[Finding]:
    settings = facts.get("settings", {})
    if settings.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on"):
        yield Finding("note", "HF_HUB_OFFLINE is set: weights that aren't here yet can't be fetched; unset it")
    if settings.get("TRITON_INTERPRET", "0") not in ("", "0"):
        yield Finding("slow", "TRITON_INTERPRET is set, which is for tests; unset it")
