"""``doctor``."""

import typer


def doctor() -> None:
    """Look at this machine, and say what mends what is missing.

    Versions, card, kernels, 4 bit, memory, disk.

    One screen without names of people and folders, to be pasted into an issue. Each look has a time limit. The exit
    status is 0 where a training can run, and 1 where something that it needs is missing.
    """
    from basic_lite.tools.doctor.command import doctor as look_and_say

    if not look_and_say():
        raise typer.Exit(1)
