"""What a run says of its steps: the live progress line, the pace of the first steps, the last line."""

import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.live import Live
from rich.text import Text

from basic_lite.console import Say, command_line
from basic_lite.sizes import GIB, number_of, size_text
from basic_lite.training.loss_text import loss_text
from basic_lite.training.time_left import TimeLeft

MEMORY = "peak_memory_gib"
# name in the log line, label, format
FIELDS = (
    ("loss", "loss", "{:.3f}"),
    ("lm", "lm", "{:.3f}"),
    ("das", "das", "{:.3f}"),
    ("sds", "sds", "{:.3f}"),
    ("sum_a", "Σa", "{:.3f}"),
    ("cos", "cos", "{:.3f}"),
    ("tokens_per_s", "tok/s", "{:,.0f}"),
    (MEMORY, "", ""),  # the unit is its label
)
# What a step without images has no values for.
OF_IMAGES = ("das", "sds", "sum_a", "cos")
PLAIN_INTERVAL_S = 15.0
BAR_FROM = 120
# The steps whose time is measured: the second to the fourth. The first one also loads libraries and starts workers.
WARM_UP, MEASURED = 1, 3
# Runs shorter than this need no forecast.
SHORT_S = 10.0


def duration_text(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class ProgressLine:
    """One line that is rewritten on a terminal; elsewhere a plain line every 15 seconds and at the end."""

    def __init__(self, console: Console, label: str, *, left: TimeLeft | None = None, shown: bool = True) -> None:
        """
        Args:
            label: the run's name.
            left: knows how long the rest takes; None: every step takes as long as those before.
            shown: False: nothing is printed, as in all but the main process.
        """
        self.console = console
        self.label = label
        self.left = left
        self.shown = shown
        self._seconds_left: float | None = None
        self._live: Live | None = None
        self._values: dict[str, float] = {}
        self._started = 0.0
        self._first_step = 0
        self._last_plain = 0.0

    def line(self, step: int, total: int) -> Text:
        """The line as it stands; on a narrow terminal several, rather than one whose end is cut off."""
        left = "?" if self._seconds_left is None else duration_text(self._seconds_left)
        items = [Text(f"{self.label} {step}/{total}", style="bold")]
        if self.console.is_terminal and self.console.width >= BAR_FROM:
            filled = round(12 * step / max(total, 1))
            items.append(Text("━" * filled, style="green").append("━" * (12 - filled), style="dim"))
        values = [_labelled(self._values[name], *field) for name, *field in FIELDS if name in self._values]
        items += [Text(label, style="dim").append(f" {value}", style="not dim") for label, value in values]
        items.append(Text("left", style="dim").append(f" {left}", style="not dim"))
        out, used = Text(no_wrap=True, overflow="ellipsis"), 0
        for item in items:
            if used and self.console.is_terminal and used + 1 + item.cell_len > self.console.width:
                out.append("\n  ")
                used = 2
            elif used:
                out.append(" ")
                used += 1
            out.append_text(item)
            used += item.cell_len
        return out

    def start(self, step: int) -> None:
        """The run begins after ``step`` steps."""
        self._started = time.monotonic()
        self._last_plain = self._started
        self._first_step = step
        if self.console.is_terminal and self.shown:
            self._live = Live(console=self.console, refresh_per_second=4, transient=True)
            self._live.start()

    def show(self, step: int, total: int, values: dict[str, float] | None = None) -> None:
        """Show the line after a step.

        Args:
            values: of its log line, where it has one; what it has no value for stays as it was.
        """
        self._values |= values or {}
        self._seconds_left = self._time_left(step, total)
        if not self.shown:
            return
        if self._live is not None:
            self._live.update(self.line(step, total))
        elif step == total or time.monotonic() - self._last_plain >= PLAIN_INTERVAL_S:
            self._last_plain = time.monotonic()
            self.console.print(self.line(step, total).plain, soft_wrap=True, highlight=False, markup=False)

    def _time_left(self, step: int, total: int) -> float | None:
        now, done = time.monotonic(), step - self._first_step
        measured = None if self.left is None else self.left.after(step, now)
        return measured if measured is not None or not done else (now - self._started) / done * (total - step)

    def close(self) -> None:
        """Take the live line off the terminal, also after an error."""
        if self._live is not None:
            self._live.stop()
            self._live = None


def _labelled(value: float, label: str, form: str) -> tuple[str, str]:
    """A value's label, and its figure; GiB without a label have the unit that suits them."""
    if label:
        return label, form.format(value)
    figure, unit = size_text(round(value * GIB)).split()
    return unit, figure


class Pace:
    """Measures a run's first steps, and says once how long all of them will take."""

    def __init__(self, device: torch.device, first: int, total: int, say: Say) -> None:
        """
        Args:
            first: steps that are done already.
        """
        self.device, self.total, self.say = device, total, say
        self._from, self._until = first + WARM_UP, first + WARM_UP + MEASURED
        self._left = total - first
        self._seconds = 0.0

    def add(self, step: int, started: float) -> None:
        """A step that began at ``started`` is done; evaluations and saving aren't part of it."""
        if not self._from <= step <= self._until:
            return
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # a few times a run
        if step > self._from:
            self._seconds += time.perf_counter() - started
        each = self._seconds / MEASURED
        if step == self._until and each * self._left >= SHORT_S:
            steps = f"all {self.total:,} steps" if self._left == self.total else f"the {self._left:,} steps left"
            whole = f"{duration_text(each * self._left)} for {steps}"
            self.say(
                f"measured over steps {self._from + 1} to {step}: {each:.2g} s a step, so {whole}; "
                "evaluations and saving come on top"
            )


def finished_text(
    first: int, last: int, seconds: float, values: Callable[[str], list[tuple[int, float]]], run: Path, final: Path
) -> str:
    """The line that a run ends with.

    Args:
        first: steps that were done before this program began.
        values: a name's steps and values in the log.
    """
    steps = number_of(last, "step") if not first else f"steps {first + 1} to {last}" if first < last else "no step left"
    # Those of this program's steps: what it began with is not what it fell from.
    losses = [(step, loss) for step, loss in values("loss") if step > first] or values("loss")[-1:]
    held_out = values("eval_loss")
    # A short run may have logged one step alone.
    fell = f"{losses[0][1]:.3f} → " if len(losses) > 1 else ""
    loss = f", loss {fell}{losses[-1][1]:.3f}" if losses else ""
    score = f", held-out {loss_text(held_out[-1][1])}" if held_out else ""
    return (
        f"finished: {steps} in {duration_text(seconds)}{loss}{score}; the trained model is {final}; "
        f"ask it: {command_line(['basic-lite', 'chat', str(run), 'PICTURE'])}"
    )
