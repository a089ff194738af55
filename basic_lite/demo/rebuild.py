"""Make the demo's checkpoints again from nothing: `python -m basic_lite.demo.rebuild --out DIR --seed 0`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch

from basic_lite.demo.language import train_language
from basic_lite.demo.vision import train_vision
from basic_lite.demo.words import build_tokenizer

# One order of summation, whatever the machine's number of cores.
THREADS = 1


def rebuild(
    out_dir: Path,
    seed: int = 0,
    progress: Callable[[str], None] = print,
    *,
    vision_steps: int | None = None,
    language_steps: int | None = None,
) -> None:
    """Train the vision encoder and the LLM from scratch into `out_dir/vision` and `out_dir/llm`.

    The same seed gives the same weights on the same machine and torch version. The shipped models are
    of seed 0; the LLM's two rounds were run one after the other, the second from the saved first.

    Args:
        out_dir: made where it is missing; both folders are overwritten.
        seed: of everything random.
        progress: called with one line of text now and then.
        vision_steps, language_steps: optimizer steps, for a quick trial; None takes the usual number.
    """
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(THREADS)
    try:
        tokenizer = build_tokenizer()
        train_vision(out_dir / "vision", tokenizer, seed, progress=progress, **_steps(vision_steps))
        short = {} if language_steps is None else {"steps": language_steps, "second_steps": language_steps}
        train_language(out_dir / "llm", tokenizer, seed, progress=progress, **short)
        tokenizer.save_pretrained(out_dir / "llm")
    finally:
        torch.set_num_threads(threads)
        torch.set_rng_state(state)


def _steps(steps: int | None) -> dict[str, int]:
    return {} if steps is None else {"steps": steps}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder that gets vision/ and llm/")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rebuild(arguments.out, arguments.seed)


if __name__ == "__main__":
    main()
