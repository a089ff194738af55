"""The report's section on the LLM's own ability with text."""

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from basic_lite.outside import CHANGED
from basic_lite.tools.report.facts import RunFacts
from basic_lite.tools.text_probe import figure, unit
from basic_lite.training.files import sha256
from basic_lite.training.places import FINAL, MANIFEST, TEXT_PROBE, is_finished, read_json
from basic_lite.training.text_probe.outcome import KEY, NoOutcome, Outcome, outcome_from


@dataclass(frozen=True)
class TextProbeSection:
    """What stands in it: a sentence, and a row for each kind of texts."""

    text: str
    rows: list[tuple[str, ...]]


def text_probe_section(facts: RunFacts) -> TextProbeSection | None:
    """From what the run found at its end, else from what `basic-lite text-probe` found since; None: neither is there.

    A result of other weights than those of now isn't shown.
    """
    found = next((one for line in reversed(facts.log) if (one := _read(line.get(KEY)))), None) or _since(facts)
    if found is None:
        return None
    kinds = found.kinds if isinstance(found, Outcome) else []
    rows: list[tuple[str, ...]] = [
        (one.name, str(one.n), figure(one, one.before), figure(one, one.after), unit(one)) for one in kinds
    ]
    return TextProbeSection(found.text[0].upper() + found.text[1:] + ".", rows)


def _since(facts: RunFacts) -> Outcome | NoOutcome | None:
    kept = read_json(facts.path / TEXT_PROBE.format(FINAL))
    if not isinstance(kept, dict) or not is_finished(facts.path):
        return None
    return _read(kept.get(KEY)) if kept.get("model_sha256") == sha256(facts.path / FINAL / MANIFEST) else None


def _read(values: Any) -> Outcome | NoOutcome | None:
    """None where there is nothing, or somebody changed it."""
    with suppress(*CHANGED):
        return outcome_from(values)
    return None
