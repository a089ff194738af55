"""basic-lite: BASIC (arXiv 2508.06895) for one graphics card.

Importing the package is light on purpose: ``basic-lite --help`` must answer at once.
"""

__version__ = "0.1.0"
