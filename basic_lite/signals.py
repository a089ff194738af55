"""The signals that ask a program to stop."""

import signal

# Windows has SIGBREAK (Ctrl-Break) besides, and no program is sent SIGTERM there.
STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGBREAK") if hasattr(signal, name))
