"""The live progress line."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

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


class ProgressLine(TrainerCallback):
    """One line that is rewritten on a terminal; elsewhere a plain line every 15 seconds and at the end."""

    def __init__(self, console: Console, label: str) -> None:
        self.console = console
        self.label = label
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

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._started = time.monotonic()
        self._last_plain = self._started
        self._first_step = state.global_step
        if self.console.is_terminal and state.is_world_process_zero:
            self._live = Live(console=self.console, refresh_per_second=4)
            self._live.start()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs and "loss" in logs:
            self._values |= logs
        self._show(state)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step % max(args.logging_steps, 1):
            self._show(state)

    def _show(self, state: TrainerState) -> None:
        if not state.is_world_process_zero:
            return
        if self._live is not None:
            self._live.update(self.line(state.global_step, state.max_steps))
        elif time.monotonic() - self._last_plain >= PLAIN_INTERVAL_S:
            self._plain(state)

    def _plain(self, state: TrainerState) -> None:
        self._last_plain = time.monotonic()
        line = self.line(state.global_step, state.max_steps)
        self.console.print(line.plain.replace("\n ", ""), soft_wrap=True, highlight=False, markup=False)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.close()
        if state.is_world_process_zero and not self.console.is_terminal:
            self._plain(state)

    def close(self) -> None:
        """Leave the terminal as it was, also after an error."""
        if self._live is not None:
            self._live.stop()
            self._live = None
