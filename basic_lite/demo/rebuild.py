"""Train the demo's checkpoints again from scratch."""

from collections.abc import Callable
from pathlib import Path

import torch

from basic_lite.demo.language import STEPS as LANGUAGE_STEPS
from basic_lite.demo.language import train_language
from basic_lite.demo.text import build_tokenizer
from basic_lite.demo.vision import STEPS as VISION_STEPS
from basic_lite.demo.vision import train_vision


def rebuild(
    out_dir: Path,
    seed: int = 0,
    progress: Callable[[str], None] = print,
    *,
    vision_steps: int = VISION_STEPS,
    language_steps: tuple[int, int] = LANGUAGE_STEPS,
) -> None:
    """Train the vision encoder and the LLM from scratch into `out_dir/vision` and `out_dir/llm`.

    The same seed gives the same weights on the same machine and torch version. The shipped models
    have seed 0. The LLM's second round started from the saved first.

    Args:
        out_dir: made where it is missing; both folders are overwritten.
        seed: the seed of everything random.
        progress: called with one line of text now and then.
        vision_steps, language_steps: optimizer steps; fewer for a quick trial.
    """
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    # One order of summation, whatever the machine's number of cores.
    torch.set_num_threads(1)
    try:
        tokenizer = build_tokenizer()
        train_vision(out_dir / "vision", tokenizer, seed, vision_steps, progress)
        train_language(out_dir / "llm", tokenizer, seed, language_steps, progress)
        tokenizer.save_pretrained(out_dir / "llm")
    finally:
        torch.set_num_threads(threads)
        torch.set_rng_state(state)
