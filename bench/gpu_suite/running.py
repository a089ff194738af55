"""Run steps side by side or in turn, each a process with a time limit; write what came of them as it comes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.gpu_suite.needs import ROOT, environment

# The most seconds that a step which ran out of time may take to write what it has.
STOP_S = 5
LAST_LINES = 25
RESULTS = "results.tar"


@dataclass(frozen=True)
class Step:
    """A program to run. In ``arguments`` SECONDS stands for the seconds after which it should begin nothing more."""

    name: str
    arguments: list[str]  # of `python -m`
    seconds: float  # the most it may take


@dataclass(frozen=True)
class Ended:
    """How a step ended. ``outcome``: passed, failed, out of time."""

    name: str
    command: list[str]
    outcome: str
    exit_code: int | None
    seconds: float
    last_lines: list[str]


@dataclass
class Suite:
    """Stages of steps, and what came of them.

    Args:
        out: gets suite.json and results.tar.
        work: where steps write.
        about: the machine and its versions.
    """

    out: Path
    work: Path
    about: dict[str, Any]
    ended: list[Ended] = field(default_factory=list)
    left_s: float = 0.0  # what the stages before have left of their time
    started: float = field(default_factory=time.monotonic)

    @property
    def passed(self) -> bool:
        return all(step.outcome == "passed" for step in self.ended)

    def run(self, stage: list[Step]) -> None:
        """Run the steps of a stage side by side. Each has its own seconds, and those that stages before have left."""
        began, most = time.monotonic(), max(step.seconds for step in stage)
        running = [Running(step, step.seconds + self.left_s, self.work) for step in stage]
        try:
            while running:
                for one in [one for one in running if one.has_ended()]:
                    running.remove(one)
                    self.take(one.result())
                time.sleep(0.05)
        finally:
            for one in running:  # the suite itself was stopped
                one.kill()
        self.left_s = max(0.0, self.left_s + most - (time.monotonic() - began))

    def take(self, step: Ended) -> None:
        """Note a step that has ended."""
        self.ended.append(step)
        print(*step.last_lines, f"── {step.name}: {step.outcome}, {step.seconds:.0f} s", sep="\n", flush=True)
        result = {**self.about, "seconds": round(time.monotonic() - self.started, 1)}
        result["steps"] = [asdict(step) for step in self.ended]
        text = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
        for folder in (self.out, self.work):
            (folder / "suite.json").write_text(text, encoding="utf-8")
        with tarfile.open(self.out / RESULTS, "w") as tar:
            for path in sorted(path for path in self.work.iterdir() if path.is_file()):
                tar.add(path, path.name)

    def table(self) -> str:
        """A line for each step."""
        lines = [f"{step.name:14} {step.outcome:12} {step.seconds:6.1f} s" for step in self.ended]
        return "\n".join([*lines, f"results  {self.out / RESULTS}"])


class Running:
    """A step while it runs."""

    def __init__(self, step: Step, limit_s: float, work: Path) -> None:
        seconds = f"{max(1.0, limit_s - STOP_S):.0f}"
        words = [seconds if word == "SECONDS" else word for word in step.arguments]
        self.step, self.command = step, [sys.executable, "-m", *words]
        self.log = work / f"{step.name}.log"
        self.started = time.monotonic()
        self.stop_at, self.interrupted = self.started + limit_s, False
        print(f"── {step.name}, {limit_s:.0f} s at most: {' '.join(self.command)}", flush=True)
        with self.log.open("w", encoding="utf-8") as sink:
            # A group of its own, so that its workers are stopped with it.
            self.process = subprocess.Popen(
                self.command, cwd=ROOT, env=environment(), stdout=sink, stderr=subprocess.STDOUT, start_new_session=True
            )

    def has_ended(self) -> bool:
        """Whether it has; what runs out of time is stopped, as Ctrl-C would, then killed."""
        if self.process.poll() is not None:
            return True
        now = time.monotonic()
        if now > self.stop_at and not self.interrupted:
            self.interrupted = True
            os.killpg(self.process.pid, signal.SIGINT)
        elif now > self.stop_at + STOP_S:
            self.kill()
        return self.process.poll() is not None

    def kill(self) -> None:
        """End it, and what it has started."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def result(self) -> Ended:
        """How it ended; what it has started ends with it."""
        self.kill()
        code = None if self.interrupted else self.process.returncode
        outcome = "out of time" if code is None else "failed" if code else "passed"
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:]
        return Ended(self.step.name, self.command, outcome, code, round(time.monotonic() - self.started, 1), lines)
