"""``basic-lite text-probe``: what a finished run has cost its LLM of its own ability with text."""

from contextlib import nullcontext
from functools import partial
from pathlib import Path

from rich.console import Console

from basic_lite.console import Sheet, counting, quiet_libraries, show, speaker
from basic_lite.errors import NoMemory, enough_memory
from basic_lite.model.device import tell_device
from basic_lite.model.load import pick_device
from basic_lite.training.bundle import load_trained
from basic_lite.training.bundle_files import Bundle, look_at_bundle
from basic_lite.training.files import saving, write_json
from basic_lite.training.places import TEXT_PROBE
from basic_lite.training.text_probe.at_end import measured
from basic_lite.training.text_probe.measure import FROZEN
from basic_lite.training.text_probe.outcome import KEY, TEXTS, Kind, NoOutcome, Outcome
from basic_lite.training.text_probe.texts import passages, questions

_FIX = "Make room, or allow writing there"
_MEND = "free some, or give --device cpu"


def probe_run(run: Path, *, device: str = "auto", console: Console | None = None) -> Outcome | NoOutcome:
    """Measure, print, and keep the result in the run's folder; an older one of the same bundle is replaced.

    Raises:
        NoMemory: for the model, or for a single text.
        UserError: no usable bundle, or the result can't be written.
    """
    quiet_libraries()
    bundle = look_at_bundle(run)
    found: Outcome | NoOutcome = NoOutcome(FROZEN)
    if bundle.has_adapter:
        found, bundle = _measured(run, device)
    console = console or Console(highlight=False)
    if isinstance(found, Outcome):
        show(console, kinds_table(found))
    speaker(console)(found.text)
    place = place_of(run, bundle)
    with saving(place, _FIX):
        write_json(place, {"step": bundle.step, "model_sha256": bundle.digest, KEY: found.to_dict()})
    return found


def kinds_table(found: Outcome) -> Sheet:
    """The kinds of texts and questions, one a row."""
    sheet = Sheet(("kind", "n", "without LoRA", "with LoRA", "unit"), text=("unit",))
    for kind in found.kinds:
        sheet.add(kind.name, str(kind.n), figure(kind, kind.before), figure(kind, kind.after), unit(kind))
    return sheet


def unit(kind: Kind) -> str:
    """What a kind is measured in."""
    return "bits a byte" if kind.of == TEXTS else "questions right"


def figure(kind: Kind, value: float) -> str:
    """One of its values."""
    return f"{value:.3f}" if kind.of == TEXTS else f"{value:.1%}"


def place_of(run: Path, bundle: Bundle) -> Path:
    """Where a bundle's result is kept: beside it."""
    folder = bundle.folder.parent if run == bundle.folder else run
    return folder / TEXT_PROBE.format(bundle.folder.name)


def _measured(run: Path, device: str) -> tuple[Outcome | NoOutcome, Bundle]:
    """What came out, and the bundle that was measured."""
    notes = Console(stderr=True, highlight=False)
    place = pick_device(device, "--device")
    tell_device(place, device, speaker(notes))
    with enough_memory(_MEND, "in loading the model"):
        loaded, bundle = load_trained(run, place)
    total = 2 * (len(passages()) + sum(len(one.continuations) for one in questions()))
    found = measured(loaded, nullcontext, partial(counting, notes, "reading", total))
    if found is None:
        raise NoMemory(f"out of memory with a single text; {_MEND}")
    return found, bundle
