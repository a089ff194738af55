"""What an evaluation asks: a file in a form of training data, or one that a benchmark has published."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from basic_lite.data.sources import load_records
from basic_lite.errors import UserError
from basic_lite.outside import place_in
from basic_lite.recipe.rules import sources_in
from basic_lite.recipe.schema import Recipe
from basic_lite.scoring.metrics.named import Metric, metric_named
from basic_lite.scoring.questions import Question, as_questions
from basic_lite.tools.benchmarks.form import Benchmark
from basic_lite.tools.benchmarks.known import benchmark_questions, published
from basic_lite.tools.data_argument import data_source

# Tokens that an answer to a benchmark's question may have at least: a model may say more than a letter.
_LEAST_TOKENS = 32


@dataclass(frozen=True)
class File:
    """A file of questions, and how a person wants it read.

    Attributes:
        path: a file or folder.
        image_dir: the folder of its pictures; None: it is looked for.
        limit: take only the first so many questions.
        benchmark: the name of the benchmark that it is of; None: as the file says.
        annotations: the file with the answers, for VQAv2.
        instruction: what is added to a benchmark's questions; None: what the benchmark adds.
    """

    path: str | os.PathLike[str]
    image_dir: str | os.PathLike[str] | None = None
    limit: int | None = None
    benchmark: str | None = None
    annotations: str | os.PathLike[str] | None = None
    instruction: str | None = None

    @property
    def option(self) -> str | None:
        """The first option given that belongs to a benchmark's file alone."""
        given = {"--benchmark": self.benchmark, "--annotations": self.annotations, "--instruction": self.instruction}
        return next((name for name, value in given.items() if value is not None), None)


@dataclass(frozen=True)
class Asked:
    """Questions, and the benchmark that they are of, if they are of one."""

    questions: list[Question]
    benchmark: Benchmark | None = None
    added: str = ""  # to each of the benchmark's questions

    def metric(self, name: str | None) -> Metric:
        """The metric that a person names, else the benchmark's, else exact match.

        Raises:
            UserError: there is none of that name.
        """
        return metric_named(name or (self.benchmark.metric if self.benchmark else "exact"))

    def tokens(self, longest: int) -> int:
        """The most tokens of an answer; ``longest``: what the longest right answer needs."""
        return max(longest, _LEAST_TOKENS) if self.benchmark else longest

    def notes(self) -> Iterator[str]:
        """What to say of them before they are asked."""
        if self.benchmark is not None:
            circles = len({one.circle for one in self.questions})
            turned = f", {circles:,} of them, each in every order of its options" if self.benchmark.circular else ""
            yield f"questions of {self.benchmark.name}{turned}"
            if self.added:
                yield f'to each question is added: "{self.added}" (--instruction changes it)'
        folders = sorted({i.folder for one in self.questions for i in one.record.images if i.blob is None})
        if len(folders) == 1:
            yield f"pictures: {folders[0]}"


def read_asked(file: File, recipe: Recipe | None) -> Asked:
    """Read a file of questions.

    Args:
        recipe: of the run; where its pictures lie is looked in too.

    Raises:
        UserError: it can't be read.
    """
    also = folders_of(recipe) if recipe is not None and file.image_dir is None else ()
    path, image_dir, annotations = _path(file.path), _path(file.image_dir), _path(file.annotations)
    assert path is not None
    if found := published(path, file.benchmark, annotations):
        benchmark, opened = found
        questions = benchmark_questions(
            benchmark, opened, image_dir=image_dir, also=also, instruction=file.instruction, limit=file.limit
        )
        added = benchmark.instruction if file.instruction is None else file.instruction
        return Asked(questions, benchmark, added)
    if file.option is not None:
        raise UserError(f"{file.option} belongs to the file of a benchmark, and {path} is none; leave it out")
    section = data_source(path, image_dir=image_dir, limit=file.limit, also=also)
    return Asked(as_questions(load_records(section, root=Path.cwd())))


def _path(text: str | os.PathLike[str] | None) -> Path | None:
    return None if text is None else Path(os.path.expanduser(text))


def folders_of(recipe: Recipe) -> Sequence[Path]:
    """The folders in which a recipe has its pictures."""
    several = [*sources_in(recipe.data.train), *sources_in(recipe.data.eval)]
    return [place_in(Path.cwd(), one.image_dir) for one in several if one.image_dir is not None]
