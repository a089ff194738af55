"""The version, apart from ``basic_lite`` itself: what is below may import it."""

__version__ = "0.2.0"
