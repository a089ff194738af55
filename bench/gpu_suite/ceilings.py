"""What the card itself reaches: copy bandwidth and the rate of a large bf16 product, with nvidia-smi's words on it."""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from bench import measure
from bench.tables import write_json


def nvidia_smi() -> str:
    """Its table, or why there is none."""
    try:
        done = subprocess.run(["nvidia-smi"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"nvidia-smi: {error}"
    return done.stdout + done.stderr


def main() -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_suite.ceilings", description=(__doc__ or "").strip())
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--dry", action="store_true", help="on a CPU, at toy sizes")
    options = parser.parse_args()
    device = torch.device("cpu" if options.dry else "cuda")
    card = nvidia_smi()
    rates = measure.measure_rates(device, tiny=options.dry)
    write_json(options.out, measure.describe(device) | {"rates": asdict(rates), "nvidia_smi": card})
    print(card, f"copy {rates.copy_gb_per_s:.0f} GB/s, {rates.gemm}: {rates.gemm_tflops:.2f} TFLOP/s", sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
