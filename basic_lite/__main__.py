"""The command ``basic-lite``, and ``python -m basic_lite``, which is the same."""

import os
import signal
from types import FrameType


def main() -> None:
    """Import the command line and run it; Ctrl-C stops the import too, where Python would show a traceback."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)
    from basic_lite.cli import main as run

    run()


def _leave(number: int, frame: FrameType | None) -> None:
    """End at once: nothing has begun, and an exception might be lost or changed in the middle of an import."""
    os.write(2, b"stopped\n")
    os._exit(130)


if __name__ == "__main__":
    main()
