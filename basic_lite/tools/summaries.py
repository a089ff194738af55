"""The summaries in a run's folder that are of the run as it is now. `eval` writes them; no torch is needed here."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from basic_lite.outside import as_object
from basic_lite.training.best_text import has_step
from basic_lite.training.files import sha256
from basic_lite.training.places import MANIFEST, SUMMARIES, newest_first, read_json


def summaries_of(run: Path, log: Sequence[Mapping[str, Any]]) -> list[tuple[Path, dict[str, Any]]]:
    """Each with its file, without those of weights that the run has no more: it went back, and made their steps again.

    Args:
        log: what ``read_log`` finds rare in the run's.
    """
    found = [(path, summary) for path in sorted(run.glob(SUMMARIES)) if isinstance(summary := read_json(path), dict)]
    manifests = {bundle.name: bundle / MANIFEST for bundle in newest_first(run)}
    return [(path, summary) for path, summary in found if _is_of_now(summary.get("settings"), log, manifests)]


def _is_of_now(settings: Any, log: Sequence[Mapping[str, Any]], manifests: Mapping[str, Path]) -> bool:
    if not isinstance(settings, dict) or type(step := settings.get("step")) is not int:  # an older version's
        return True
    name, digest = settings.get("bundle"), settings.get("model_sha256")
    manifest = manifests.get(name) if isinstance(name, str) else None
    # The log may end before the step of a bundle: not every step has a line.
    if manifest is not None and digest is not None and as_object(read_json(manifest)).get("step") == step:
        return sha256(manifest) == digest
    return has_step(log, step)
