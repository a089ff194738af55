"""``basic-lite doctor``: one screen, fit to be pasted into an issue."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rich.console import Console

from basic_lite.console import speaker
from basic_lite.printable import one_line
from basic_lite.sizes import size_text
from basic_lite.tools.doctor.findings import Finding, findings, four_bit_fault
from basic_lite.tools.doctor.probe import Answer, ask
from basic_lite.version import __version__
from basic_lite.wrapping import wrapped

# One screen of a terminal that nobody has enlarged.
COLUMNS, LINES = 80, 24
# The looks of ``looks.py``, each with the seconds that it may take. Kernels that aren't in Triton's cache yet are
# compiled, and a slow disk takes its time to hand over torch. That module isn't imported here: it may lack a package.
LIMITS_S = {
    "machine": 30.0,
    "runs_disk": 30.0,
    "cache_disk": 30.0,
    "torch": 180.0,
    "triton": 240.0,
    "four_bit": 240.0,
    "training": 240.0,
}
# Looks at a time: each imports torch.
_AT_ONCE = 4
_MARGIN = 10
# Characters of one entry: five lines.
_MOST_OF_TEXT = 350


def doctor(console: Console | None = None) -> bool:
    """Look at this machine, and print what is there and what mends what isn't.

    Returns:
        Whether a training can run here.
    """
    console = console or Console(highlight=False)
    say = speaker(console)
    if console.is_terminal:
        speaker(Console(stderr=True))("looking at this machine; half a minute at most where all is well …")
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        asked = {name: pool.submit(ask, name, most_s) for name, most_s in LIMITS_S.items()}
    answers = {name: one.result() for name, one in asked.items()}
    found = findings(answers)
    for line in screen(answers, found, min(COLUMNS, console.width) if console.is_terminal else COLUMNS):
        say(line)
    return can_train(found)


def can_train(found: Sequence[Finding]) -> bool:
    """Whether nothing that is needed is missing."""
    return not any(one.kind == "needed" for one in found)


def screen(answers: Mapping[str, Answer], found: Sequence[Finding], width: int) -> list[str]:
    """The lines. At ``COLUMNS`` there are ``LINES`` at most: what matters least is counted, not shown."""
    head = [line for name, text in _rows(answers) for line in _wrapped(name, text, width)]
    head += _wrapped("verdict", _verdict(answers, found), width)
    below = [line for one in found for line in _wrapped(one.kind, one.text, width)]
    room = LINES - len(head) if width >= COLUMNS else len(below)
    if len(below) > room:
        below = [*below[: room - 1], f"{'':{_MARGIN}}… and more, which is shown when this is mended"]
    return [*head, *below]


def _wrapped(name: str, text: str, width: int) -> list[str]:
    """A name in the margin, and a text beside it."""
    return wrapped(f"{name:{_MARGIN}}{one_line(text, _MOST_OF_TEXT)}", width, " " * _MARGIN, fold=True)


def _rows(answers: Mapping[str, Answer]) -> Iterator[tuple[str, str]]:
    facts, seen = answers["machine"].facts, answers["torch"].facts
    yield (
        "machine",
        f"basic-lite {__version__}, "
        + (f"Python {facts['python']}, {facts['system']}" if facts else answers["machine"].failure),
    )
    if facts:
        build = f" (built {seen['build']})" if seen else ""
        versions = [f"{name} {number or 'not installed'}" for name, number in facts["versions"].items()]
        yield "packages", ", ".join([versions[0] + build, *versions[1:]])
    yield "card", _card(answers["torch"])
    yield "kernels", _kernels(answers["triton"])
    fault = four_bit_fault(answers["four_bit"])
    yield "4 bit", fault or f"bitsandbytes multiplies on {answers['four_bit'].facts['on']}: right, as far as 4 bit goes"
    if facts:
        yield "memory", _memory(facts)
    yield "disk free", f"{_disk(answers['runs_disk'])} for runs/, {_disk(answers['cache_disk'])} for downloaded weights"
    if facts and facts["settings"]:
        yield "set", ", ".join(f"{name}={value}" for name, value in facts["settings"].items())


def _card(answer: Answer) -> str:
    facts = answer.facts
    if not facts:
        return f"not known: {answer.failure}"
    driver = f"driver {facts['driver']} (CUDA up to {facts['driver_cuda']})" if facts["driver"] else "no NVIDIA driver"
    if not facts["card"]:
        return f"none that torch can use; {driver}"
    bf16 = "bfloat16" if facts["bf16"] else "no bfloat16"
    several = f"{facts['cards']} cards, the first: " if facts["cards"] > 1 else ""
    memory = f"{size_text(facts['card_bytes'])}, {size_text(facts['free_card_bytes'])} free"
    capability = ".".join(map(str, facts["capability"]))
    return f"{several}{facts['card']}, {memory}, compute capability {capability}, {bf16}; {driver}"


def _kernels(answer: Answer) -> str:
    facts = answer.facts
    if not facts:
        return f"the trial failed: {answer.failure}"
    if not facts["runs"]:
        return f"{facts['why']}; plain PyTorch computes the same"
    liger = "Liger's too" if facts["liger"] else "Liger's not"
    return f"Triton compiled and ran ours, and they are right ({answer.seconds:.0f} s); {liger}"


def _memory(facts: Mapping[str, Any]) -> str:
    shared = "" if facts["shared_bytes"] is None else f"; {size_text(facts['shared_bytes'])} shared (/dev/shm)"
    return (
        f"{size_text(facts['memory_bytes'])}, {size_text(facts['free_memory_bytes'])} free{shared}; "
        f"{facts['cores']} CPU cores"
    )


def _disk(answer: Answer) -> str:
    return size_text(answer.facts["free_bytes"]) if answer.facts else "not known"


def _verdict(answers: Mapping[str, Answer], found: Sequence[Finding]) -> str:
    if not can_train(found):
        return "training can't run here until what is needed, below, is mended"
    if not answers["torch"].facts["card"]:
        return "training runs here, on the CPU" + ("; what to know of it stands below" if found else "")
    return "training runs here" + ("; what to know of it stands below" if found else ", and nothing is missing")
