"""A loss in words, the same on the terminal, in lists and on pages."""

import math

NO_NUMBER = "is no number"


def loss_text(loss: float, digits: int = 3) -> str:
    """Its figure; infinity and what isn't a number have none."""
    return f"{loss:.{digits}f}" if math.isfinite(loss) else NO_NUMBER
