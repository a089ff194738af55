"""Records whose picture breaks while a run goes on: left out of their step, said, and written down."""

from pathlib import Path
from typing import Any

from basic_lite.console import Say
from basic_lite.errors import UserError
from basic_lite.training.files import saving, write_json
from basic_lite.training.log import FIX, RunLog
from basic_lite.training.log_lines import lines_of
from basic_lite.training.places import DATA
from basic_lite.training.processes import Processes

_SAID = 5
# Records lost without one that is read in between: the pictures' disk is gone rather than a picture.
_MOST_IN_A_ROW = 16


class DroppedRecords:
    """Says which records a run has dropped, and writes them to ``log.jsonl`` and ``data.json``.

    What is left of a step is a step as any other: its terms are divided by the counts of the samples that are there.
    """

    def __init__(
        self, folder: Path, log: RunLog, processes: Processes, say: Say, *, on: bool, summary: dict[str, Any]
    ) -> None:
        """
        Args:
            on: broken records are dropped. Otherwise they stop the run where they are read.
            summary: what ``data.json`` says of the data.
        """
        self._folder, self._log, self._processes, self._say = folder, log, processes, say
        self._on, self._summary = on, summary
        self._dropped: list[dict[str, Any]] | None = None
        self._in_a_row = 0

    def note(self, step: int, problems: list[str], *, where: str = "") -> int:
        """Write down what this process and the others have lost in a step. Gives how many records that are.

        Args:
            problems: of this process's records.
            where: what the records were read for; nothing: the step itself.
        """
        if not self._on or not self._processes.any(bool(problems)):
            return 0
        lost = [problem for part in self._processes.gather(problems) for problem in part]
        for problem in lost[:_SAID]:
            self._say(f"dropped in {where or f'step {step}'}: {problem}")
        if len(lost) > _SAID:
            self._say(f"… and {len(lost) - _SAID:,} more, in {self._folder / DATA}")
        self._log.write(step, {"dropped": lost})
        if self._dropped is not None:
            self._dropped.append({"step": step, "records": lost})
        self.write()
        return len(lost)

    def require_some(self, step: int, lost: int, *, left: bool) -> None:
        """See that not everything breaks.

        Args:
            lost: records of the step that were dropped.
            left: whether the step has any sample left.

        Raises:
            UserError: 16 records in a row were lost.
        """
        self._in_a_row = 0 if left else self._in_a_row + lost
        if self._in_a_row >= _MOST_IN_A_ROW:
            raise UserError(
                f"step {step}: none of the last {self._in_a_row:,} records could be read; is the folder with their "
                "pictures still there? Continue with --resume once it is"
            )

    def write(self) -> None:
        """Write ``data.json``: what the data is, and every record that was dropped since the run's first step."""
        if not self._processes.is_main:
            return
        path = self._folder / DATA
        if self._dropped is None:  # the log has what this run dropped before it was continued
            found = [line for line in lines_of(self._folder) if "dropped" in line]
            self._dropped = [{"step": line.get("step"), "records": line["dropped"]} for line in found]
        with saving(path, FIX):
            write_json(path, self._summary | ({"dropped_while_training": self._dropped} if self._dropped else {}))
