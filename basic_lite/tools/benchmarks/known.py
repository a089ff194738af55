"""The benchmarks whose published files are read, and which of them a file belongs to."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from basic_lite.choices import meant
from basic_lite.data.guess import folder_of
from basic_lite.errors import UserError
from basic_lite.scoring.questions import Question
from basic_lite.tools.benchmarks.chartqa import CHARTQA
from basic_lite.tools.benchmarks.docvqa import DOCVQA
from basic_lite.tools.benchmarks.form import Benchmark, Published, questions_of
from basic_lite.tools.benchmarks.gqa import GQA
from basic_lite.tools.benchmarks.mmbench import MMBENCH
from basic_lite.tools.benchmarks.pope import POPE
from basic_lite.tools.benchmarks.scienceqa import SCIENCEQA
from basic_lite.tools.benchmarks.textvqa import TEXTVQA
from basic_lite.tools.benchmarks.vqav2 import VQAV2

BENCHMARKS = {one.name: one for one in (VQAV2, TEXTVQA, GQA, POPE, MMBENCH, SCIENCEQA, CHARTQA, DOCVQA)}


def published(path: Path, name: str | None, annotations: Path | None) -> tuple[Benchmark, Published] | None:
    """The benchmark that a file belongs to; None: it is no published file, but data in a form of training.

    Args:
        name: what a person says that it is; None: as the file says.
        annotations: the file with the answers, for VQAv2.

    Raises:
        UserError: there is no such benchmark, or the file isn't its.
    """
    if name is not None and name not in BENCHMARKS:
        near = meant(name, BENCHMARKS)
        listed = ", ".join(BENCHMARKS)
        raise UserError(
            f"--benchmark: {name!r} is none of {listed}" + (f"; did you mean {near}?" if near else "; choose one")
        )
    if not path.is_file():
        return None
    file = Published(path, annotations)
    found = next((one for one in BENCHMARKS.values() if one.is_its(file)), None)
    if name is not None and found is not BENCHMARKS[name]:
        found = _said_to_be(BENCHMARKS[name], file, found)
    if annotations is not None and found is not VQAV2:
        raise UserError("--annotations belongs to VQAv2's questions; other files have their answers in them")
    return (found, file) if found is not None else None


def _said_to_be(benchmark: Benchmark, file: Published, other: Benchmark | None) -> Benchmark:
    """The benchmark, if a file that doesn't say so may be its: the list that LLaVA makes of ScienceQA."""
    if benchmark is SCIENCEQA and "conversations" in (file.first or {}):
        return benchmark
    is_other = f"it is of {other.name}" if other is not None else "it isn't in that benchmark's published form"
    mend = f"give --benchmark {other.name}" if other is not None else "fetch it from there, or leave --benchmark out"
    raise UserError(f"--benchmark {benchmark.name}: {file.name}: {is_other}; {mend}")


def benchmark_questions(
    benchmark: Benchmark,
    file: Published,
    *,
    image_dir: Path | None,
    also: Sequence[Path] = (),
    instruction: str | None = None,
    limit: int | None = None,
) -> list[Question]:
    """The questions of a published file, with the folder of their pictures.

    Args:
        image_dir: that folder; None: it is looked for around the file, then in ``also``.
        instruction: what is added to each question; None: the benchmark's own.
        limit: take only the first so many.

    Raises:
        UserError: the file can't be read.
    """
    added = benchmark.instruction if instruction is None else instruction
    found = questions_of(benchmark, file, added, limit)
    names = [image.name for one in found for image in one.record.images if image.blob is None]
    folder = image_dir or folder_of(names, file.path.parent, also) or file.path.parent
    return [_in_folder(one, str(folder.absolute())) for one in found]


def _in_folder(question: Question, folder: str) -> Question:
    images = tuple(
        image if image.blob is not None else replace(image, folder=folder) for image in question.record.images
    )
    return replace(question, record=replace(question.record, images=images))
