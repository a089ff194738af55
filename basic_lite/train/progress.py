"""The live progress line."""

import time

from rich.console import Console
from rich.live import Live
from rich.text import Text

# name in the log line, label, format
FIELDS = (
    ("loss", "loss", "{:.3f}"),
    ("lm", "lm", "{:.3f}"),
    ("das", "das", "{:.3f}"),
    ("sds", "sds", "{:.3f}"),
    ("sum_a", "Σa", "{:.3f}"),
    ("cos", "cos", "{:.3f}"),
    ("tokens_per_s", "tok/s", "{:,.0f}"),
    ("peak_memory_gib", "GiB", "{:.2f}"),
)
PLAIN_INTERVAL_S = 15.0
WIDE = 112


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class ProgressLine:
    """One line that is rewritten on a terminal; elsewhere a plain line every 15 seconds and at the end."""

    def __init__(self, console: Console, label: str, *, shown: bool = True) -> None:
        """
        Args:
            label: the run's name.
            shown: False: nothing is printed, as in all but the main process.
        """
        self.console = console
        self.label = label
        self.shown = shown
        self._live: Live | None = None
        self._values: dict[str, float] = {}
        self._started = 0.0
        self._first_step = 0
        self._last_plain = 0.0

    def line(self, step: int, total: int) -> Text:
        """The line as it stands."""
        done = step - self._first_step
        elapsed = time.monotonic() - self._started
        left = clock(elapsed / done * (total - step)) if done else "?"
        text = Text(no_wrap=True, overflow="ellipsis")
        narrow = self.console.width < WIDE
        text.append(f"{self.label} {step}/{total}", style="bold")
        if self.console.is_terminal and self.console.width >= 120:
            filled = round(12 * step / max(total, 1))
            text.append(" " + "━" * filled, style="green").append("━" * (12 - filled), style="dim")
        for name, label, form in FIELDS:
            if narrow and name == "sum_a":
                text.append("\n ")  # two lines, rather than one whose end is cut off
            if name in self._values:
                text.append(f" {label} ", style="dim").append(form.format(self._values[name]))
        return text.append(" left ", style="dim").append(left)

    def start(self, step: int) -> None:
        """The run begins after ``step`` steps."""
        self._started = time.monotonic()
        self._last_plain = self._started
        self._first_step = step
        if self.console.is_terminal and self.shown:
            self._live = Live(console=self.console, refresh_per_second=4)
            self._live.start()

    def show(self, step: int, total: int, values: dict[str, float] | None = None) -> None:
        """Show the line after a step; ``values``: its log line, where it has one."""
        self._values |= values or {}
        if not self.shown:
            return
        if self._live is not None:
            self._live.update(self.line(step, total))
        elif step == total or time.monotonic() - self._last_plain >= PLAIN_INTERVAL_S:
            self._last_plain = time.monotonic()
            line = self.line(step, total)
            self.console.print(line.plain.replace("\n ", ""), soft_wrap=True, highlight=False, markup=False)

    def close(self) -> None:
        """Leave the terminal as it was, also after an error."""
        if self._live is not None:
            self._live.stop()
            self._live = None
