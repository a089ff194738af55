"""``basic-lite export``: the folder is written, checked, described, and appears when all of that is done."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.console import Console

from basic_lite.choices import new_place
from basic_lite.console import Sheet, command_line, counting, quiet_libraries, show, speaker
from basic_lite.errors import UserError, enough_memory
from basic_lite.model.device import dtype_name, tell_device
from basic_lite.model.load import pick_device
from basic_lite.printable import printable
from basic_lite.rehearsal.disk import free_bytes
from basic_lite.sizes import MIB, size_text
from basic_lite.tools.export.card import hub_name, model_card, public_name
from basic_lite.tools.export.check import Checked, check, dtype_of_check
from basic_lite.tools.export.folder import ExportDtype, Source, open_source, write_settings, write_weights
from basic_lite.tools.export.gguf import GgufFiles, check_gguf, write_gguf
from basic_lite.tools.export.gguf.weights import GgufType
from basic_lite.tools.export.merge import MERGED_INTO, MergeInto
from basic_lite.tools.export.samples import choose_samples
from basic_lite.training.files import new_folder, sha256, write_json
from basic_lite.training.places import read_json
from basic_lite.version import __version__
from basic_lite.whole_file import write_whole

REPORT, CARD, GGUF = "export.json", "README.md", "gguf"


def export(
    run: Path,
    out: Path,
    *,
    merge_into: MergeInto | None = None,
    dtype: ExportDtype = "auto",
    samples: int = 16,
    limit: float | None = None,
    gguf: GgufType | None = None,
    llama_cpp: Path | None = None,
    device: str = "auto",
    console: Console | None = None,
) -> bool:
    """Export a run or bundle to the folder ``out``.

    Args:
        samples: records of the run's data that the check takes; 0: no check.
        limit: most mean KL in nats a token; None: see `check.LIMIT` and `check.LIMIT_ORIGINAL`.
        gguf: how the LLM's matrices are stored in GGUF files; None: no such files.
        llama_cpp: llama.cpp's source, whose converter then writes the LLM's file.

    Returns:
        False where the check found more than the limit allows. The folder is there then, and says so.

    Raises:
        UserError: nothing was written; says why.
    """
    console = console or Console(highlight=False)
    terminal = Console(stderr=True, highlight=False)
    say = speaker(terminal)
    quiet_libraries()
    out = new_place(out)
    place = pick_device(device, "--device")
    tell_device(place, device, say)
    source = open_source(run, merge_into, dtype, place)
    say(_introduction(source))
    in_check = dtype_of_check(source, place)
    _require_room(source, out, in_check=in_check if samples > 0 else None, gguf=gguf)
    if samples > 0 and in_check != source.dtype:
        say(f"the check computes in float32: this processor has no instructions for {dtype_name(source.dtype)}")
    chosen = choose_samples(source, samples) if samples else []
    if (threads := source.bundle.recipe.training.threads) is not None:
        torch.set_num_threads(threads)  # so small a model is no faster on more, and far slower on a busy machine
    with new_folder(out, "Make room, or choose another folder") as scratch:
        write_settings(scratch, source)
        if gguf is not None:
            check_gguf(scratch, llama_cpp=llama_cpp)  # before an hour is spent
        with counting(terminal, "MiB written", source.size_bytes // MIB) as count:
            write_weights(scratch, source, lambda more: count(more / MIB))
        files = None
        if gguf is not None:
            files = write_gguf(scratch, scratch / GGUF, kind=gguf, llama_cpp=llama_cpp, name=out.name, say=say)
        checked = None
        if chosen:
            mend = "take another --device, or leave the check out with --no-check"
            with (
                enough_memory(mend, "in the check"),
                counting(terminal, "answers of both models", 3 * len(chosen)) as count,
            ):
                checked = check(
                    source, scratch, chosen, limit=limit, gguf=gguf is not None, device=place, progress=count
                )
        differences = _differences(files, checked)
        write_json(scratch / REPORT, report(source, checked, differences))
        run_folder = source.bundle.folder.absolute().parent  # a bundle lies in its run's folder
        card = model_card(source, checked, out.name, run_folder, differences if files is not None else None)
        write_whole(scratch / CARD, card)
    for difference in differences:
        say(f"GGUF: {difference}")
    if checked is not None:
        show(console, table(checked))
    console.print(printable(_verdict(out, source, checked)), soft_wrap=True, markup=False)
    if passed := checked is None or checked.passed:
        say(f"model card: {out / CARD} (see to its licence before you publish)")
        say(f"ask it:     {command_line(['basic-lite', 'chat', str(out)])} picture.jpg")
        say(f"publish it: {command_line(['hf', 'upload', f'OWNER/{hub_name(out.name)}', str(out)])}")
    return passed


def exported_from(out: Path, manifest: Path | None) -> bool | None:
    """Whether ``out`` is the export of this bundle's manifest, and has passed its check; None: it is no such export."""
    found = read_json(out / REPORT)
    if manifest is None or not manifest.is_file() or not isinstance(found, dict):
        return None
    if found.get("manifest_sha256") != sha256(manifest):
        return None
    return found["check"] is None or bool(found["check"]["passed"])


def _require_room(source: Source, out: Path, *, in_check: torch.dtype | None, gguf: GgufType | None) -> None:
    """See that disk and memory are enough before an hour is spent. ``in_check``: its number type; None: no check."""
    needed = source.size_bytes
    if gguf is not None:
        needed += int(source.parameters * {"f32": 4, "f16": 2, "q8_0": 34 / 32}[gguf])
    if why := no_room(out, needed):
        raise UserError(why)
    memory = psutil.virtual_memory().available
    if torch.cuda.is_available():
        memory += torch.cuda.mem_get_info()[0]
    loaded = 0 if in_check is None else max(source.size_bytes, source.parameters * in_check.itemsize)
    if memory < loaded:
        raise UserError(
            f"the check loads the exported model, {size_text(loaded)}, and {size_text(memory)} of memory are free; "
            "leave it out with --no-check"
        )


def no_room(out: Path, needed_bytes: int) -> str:
    """What stands against an export on its folder's disk; empty: nothing."""
    if (free := free_bytes(out)) >= needed_bytes:
        return ""
    return (
        f"the disk of {out} has {size_text(free)} left, and the export takes {size_text(needed_bytes)}; make room, or "
        "choose another folder"
    )


def _introduction(source: Source) -> str:
    bundle, merge = source.bundle, source.merge
    how = "LoRA and projector, merged into" if merge.lora else "projector, beside"
    return (
        f"exporting {bundle.folder} (step {bundle.step} of {bundle.manifest['total_steps']}): "
        f"{how} {MERGED_INTO[merge.into]}, in {dtype_name(source.dtype)}, {size_text(source.size_bytes)}"
    )


def _differences(files: GgufFiles | None, checked: Checked | None) -> list[str]:
    """What programs that read GGUF do otherwise than the training did, a sentence each."""
    if files is None or checked is None or (measured := checked.llama_cpp) is None:
        return files.notes if files is not None else []
    return [
        *files.notes,
        f"Measured on the check's pictures: llama.cpp's pixels differ by {measured.pixels:.2f} of 255 grey levels on "
        f"average, and its GELU moves the projector's output by {measured.projector:.1e} of its size.",
    ]


def report(source: Source, checked: Checked | None, differences: list[str]) -> dict[str, Any]:
    """``export.json``."""
    bundle = source.bundle
    return {
        "basic_lite": __version__,
        "manifest_sha256": bundle.digest,
        "step": bundle.step,
        "total_steps": bundle.manifest["total_steps"],
        "models": {part: public_name(base) for part, base in bundle.manifest["models"].items() if base},
        "merged_into": source.merge.into,
        "dtype": dtype_name(source.dtype),
        "gguf_differs": differences,
        "check": None if checked is None else {"passed": checked.passed} | asdict(checked),
    }


def table(checked: Checked) -> Sheet:
    """The check's result as a table."""
    names = (f"{name}, exported" if name == checked.merged_into else name for name in checked.drift)
    out = Sheet(("", *names), "exported against trained")
    blank = [""] * (len(checked.drift) - 1)
    for label, same in (("equal token ids", checked.same_ids), ("equal pixels", checked.same_pixels)):
        out.add(label, f"{same} of {checked.samples}", *blank)
    out.add("equal greedy answers", f"{checked.same_answers} of {checked.samples}", *blank)
    out.end_section()
    rows = {
        "KL, nats a token": "kl",
        "equal next token": "same_next",
        "logits: mean |Δ|": "mean",
        "logits: max |Δ|": "largest",
    }
    for label, field in rows.items():
        out.add(label, *(f"{getattr(drift, field):.3g}" for drift in checked.drift.values()))
    return out


def _verdict(out: Path, source: Source, checked: Checked | None) -> str:
    if checked is None:
        return f"exported to {out}; not checked"
    drift = checked.drift[checked.merged_into]
    if checked.passed:
        kl = f"KL {drift.kl:.3g} ≤ {checked.limit:.3g} nats a token"
        same = "the run does with its base models as they are now" if source.changed else "the trained model does"
        if checked.same_answers == checked.samples:
            return f"exported to {out}: it answers as {same} ({kl})"
        return (
            f"exported to {out}: it predicts nearly as {same} ({kl}), and {checked.same_answers} of {checked.samples} "
            "answers are the same"
        )
    if checked.same_ids < checked.samples or checked.same_pixels < checked.samples:
        return f"exported to {out}: FAILED, its processor gives other inputs than training had; see {out / REPORT}"
    advice = "--merge-into quantized changes it least; " if checked.merged_into == "original" else ""
    return (
        f"exported to {out}: FAILED, KL {drift.kl:.3g} is above {checked.limit:.3g} nats a token: "
        f"it predicts otherwise than the trained model; {advice}--limit sets the limit"
    )
