"""The same bits every time, and what the loaded kernels take: registers, spilled registers, shared memory.

Each kernel runs many times on the same inputs, with memory filled with NaN in between and other work beside it
(``bench/same_bits.py``). Then each kernel that this process has loaded says what the driver made of it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

from basic_lite_kernels.operations import choose
from bench import measure
from bench.same_bits import REPEATS, Disturbance, differing_runs, works
from bench.tables import columns, write_json

HEADER = ("name", "warps", "registers", "stack_bytes", "shared_bytes")


def loaded_kernels() -> list[dict[str, Any]]:
    """A line for each compiled variant of our kernels that a card has loaded; none where none was compiled.

    A few bytes of stack are allowed; ``tests/support/compiling`` says how many.
    """
    from triton.runtime.jit import JITFunction

    from basic_lite_kernels import attention_mass, direction_loss, row_scaling, vocab_kl

    files = (attention_mass, direction_loss, row_scaling, vocab_kl)
    functions = {name: value for file in files for name, value in vars(file).items() if isinstance(value, JITFunction)}
    found = [
        {
            "name": name,
            "warps": compiled.metadata.num_warps,
            "registers": compiled.n_regs,
            "stack_bytes": 4 * compiled.n_spills,
            "shared_bytes": compiled.metadata.shared,
        }
        for name, function in functions.items()
        for caches in function.device_caches.values()
        for compiled in caches[0].values()
        if compiled.module is not None
    ]
    return sorted(found, key=lambda line: tuple(line.values()))


def main() -> int:
    """Run, print and write; exit 1 where bits differ or a kernel spills more than is allowed."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu_suite.races", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--dry", action="store_true", help="on a CPU, at toy sizes, by eager code")
    options = parser.parse_args()
    from tests.support.compiling.compiler import STACK_LIMIT_BYTES

    device = torch.device("cpu" if options.dry else "cuda")
    operations = choose("reference" if options.dry else "triton", device).operations
    repeats, disturb = 2 if options.dry else REPEATS, Disturbance(device)
    differing = {}
    for name, work in works(operations, device, tiny=options.dry).items():
        differing[name] = differing_runs(work, disturb, repeats)
        print(f"{name}: {differing[name]} of {repeats} runs differ", flush=True)
    kernels = loaded_kernels()
    print(columns(list(HEADER), [[str(line[name]) for name in HEADER] for line in kernels]))
    write_json(options.out, measure.describe(device) | {"differing": differing, "repeats": repeats, "kernels": kernels})
    spilling = [line["name"] for line in kernels if line["stack_bytes"] > STACK_LIMIT_BYTES]
    print(f"spill more than {STACK_LIMIT_BYTES} bytes: {', '.join(spilling) or 'none'}")
    return 1 if spilling or any(differing.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
