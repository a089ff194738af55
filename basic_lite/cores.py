"""Processor cores. No torch, so that the doctor can count them where torch is broken."""

import os


def usable_cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
