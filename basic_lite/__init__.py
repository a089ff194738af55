"""basic-lite: BASIC (arXiv 2508.06895) for one graphics card.

Importing the package is light on purpose: ``basic-lite --help`` must answer at once.
"""

import logging

from basic_lite.version import __version__

__all__ = ["__version__"]

# bitsandbytes 0.50 warns at import, on CPUs with AVX512-BF16, that an optional inference kernel isn't installed.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
