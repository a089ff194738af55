"""A training step without weights or a card: how much memory it takes, and what for.

The project's own step runs on fake tensors (shapes and types without values), and a ledger counts every storage for as
long as it lives. So the answer follows the code and can't drift from it.

    frontend = load_frontend(recipe.model)
    rehearsal = rehearse(recipe, frontend, Machine.card(recipe))
    rehearsal.peak_bytes, rehearsal.by_part
"""

from basic_lite.rehearsal.batch import Shape
from basic_lite.rehearsal.machine import Machine
from basic_lite.rehearsal.step import Rehearsal, Rehearser, rehearse

__all__ = ["Machine", "Rehearsal", "Rehearser", "Shape", "rehearse"]
