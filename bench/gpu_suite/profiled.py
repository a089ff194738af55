"""One step under the profiler: how busy the card is, where it waits, which kernels take the time; what waits for it.

The step is that of ``basic-lite estimate --measure``, with BASIC, on a model of random weights. In a dry run the
processor's operations stand for a card's kernels.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from basic_lite.console import quiet_libraries
from bench import measure
from bench.gpu_suite.model import add_arguments, device_of, limit_memory, longest_step, recipe_of
from bench.gpu_suite.needs import ROOT
from bench.tables import columns, write_json

TOP, LONGEST_GAPS = 20, 10
# A launch takes a card some 5 µs; what lasts longer is a wait.
LEAST_GAP_NS = 10_000


class Span(NamedTuple):
    """One kernel, copy or fill of a card's; of a CPU one operation."""

    start_ns: int
    end_ns: int
    name: str


def spans_of(work: Callable[[], object], device: torch.device) -> list[Span]:
    """What ran on the device during ``work``, by its beginning."""
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as seen:
        work()
        if on_gpu:
            torch.cuda.synchronize(device)
    wanted = DeviceType.CUDA if on_gpu else DeviceType.CPU
    events = [e for e in seen.profiler.kineto_results.events() if e.device_type() == wanted]
    # An annotation lasts as long as what is inside it.
    return sorted(Span(e.start_ns(), e.end_ns(), e.name()) for e in events if not e.is_user_annotation())


def timeline(spans: Sequence[Span]) -> dict[str, Any]:
    """Busy share of the time from the first to the last, gaps between them, and kernels by their time."""
    busy_ns, reached, before = 0, spans[0].start_ns, "start"
    gaps: list[tuple[int, str, str]] = []
    for span in spans:
        if span.start_ns - reached >= LEAST_GAP_NS:
            gaps.append((span.start_ns - reached, before, span.name))
        busy_ns += max(0, span.end_ns - max(span.start_ns, reached))
        if span.end_ns > reached:
            reached, before = span.end_ns, span.name
    total_ns = max(1, reached - spans[0].start_ns)
    time_ns: Counter[str] = Counter()
    for span in spans:
        time_ns[span.name] += span.end_ns - span.start_ns
    calls = Counter(span.name for span in spans)
    return {
        "total_ms": total_ns / 1e6,
        "busy_share": busy_ns / total_ns,
        "launches": len(spans),
        "gaps": len(gaps),
        "gaps_ms": sum(gap[0] for gap in gaps) / 1e6,
        "longest_gaps": [
            {"ms": ns / 1e6, "after": a, "before": b} for ns, a, b in sorted(gaps)[: -LONGEST_GAPS - 1 : -1]
        ],
        "top": [
            {"name": name, "ms": ns / 1e6, "share": ns / total_ns, "calls": calls[name]}
            for name, ns in time_ns.most_common(TOP)
        ],
    }


@contextmanager
def waits(device: torch.device) -> Iterator[Counter[str]]:
    """Count, by their place in the code, the calls inside that wait for the card. A CPU has none."""
    found: Counter[str] = Counter()
    if device.type != "cuda":
        yield found
        return
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode("default")
    found.update(f"{_place(w.filename)}:{w.lineno}" for w in said if "synchronizing" in str(w.message))


def _place(file: str) -> str:
    """A file without the folder where packages are installed, or that of the project."""
    return file.rpartition("/site-packages/")[2].removeprefix(f"{ROOT}/")


def main() -> int:
    """Profile, print and write."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu_suite.profiled", description=(__doc__ or "").splitlines()[0]
    )
    add_arguments(parser)
    parser.add_argument("--limit-gib", type=float, help="of the card's memory")
    options = parser.parse_args()
    device = device_of(options.dry)
    quiet_libraries()
    torch.manual_seed(0)
    limit_memory(device, options.limit_gib)
    with tempfile.TemporaryDirectory() as folder:
        recipe = recipe_of(options.recipe, Path(folder), options.overrides, dry=options.dry, shape=options.shape)
        _, step = longest_step(recipe, device)
        step()  # compiles kernels, makes the optimizer's state
        about = measure.describe(device) | {"recipe": recipe.name, "micro_batches": len(step.batches)}
        found: dict[str, Any] = {}
        for name, basic in (("on", True), ("off", False)):
            found[name] = timeline(spans_of(lambda basic=basic: step(basic=basic), device))
            write_json(options.out, about | found)
            say(name, found[name])
        with waits(device) as waiting:
            step()
        found["waits"] = dict(waiting.most_common())
        write_json(options.out, about | found)
        print(f"waits for the device in a step of {len(step.batches)} micro-batches: {sum(waiting.values())}")
        print(*(f"  {count} × {place}" for place, count in waiting.most_common()), sep="\n")
    return 0


def say(name: str, found: dict[str, Any]) -> None:
    """Print a timeline."""
    print(
        f"BASIC {name}: {found['total_ms']:.1f} ms, busy {found['busy_share']:.1%}, {found['launches']} launches, "
        f"{found['gaps']} gaps of {found['gaps_ms']:.1f} ms"
    )
    body = [[row["name"][:60], f"{row['ms']:.1f}", f"{row['share']:.1%}", str(row["calls"])] for row in found["top"]]
    print(columns(["kernel", "ms", "share", "calls"], body), flush=True)


if __name__ == "__main__":
    sys.exit(main())
