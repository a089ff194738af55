"""Hours and energy of a run on a card: the time that the planner counts for a sample, times the samples. Predicted.

It is for cards alone. On a CPU nothing is predicted: a run measures its first steps and says how long all will take.
"""

import math
from dataclasses import dataclass

from rich.console import Console

from basic_lite.cards import BYTES_SHARE, CARDS, PRODUCTS_SHARE, Card
from basic_lite.console import Sheet, show, speaker
from basic_lite.rehearsal.planner import Planner

# A guess: what follows if large products reach .5 to .95 of a data sheet in place of the .8 that is counted with, or
# if a host starts operations at a third to a half of the assumed speed, as the one beside an H200 did. LLaVA's authors
# took 1.3 and 1.5 times what is predicted for their stage 1 (docs/MEMORY.md).
SHORTEST, LONGEST = 0.85, 3.0
UNTIMED = f"of cards only an H200 has been timed, and {SHORTEST:g} to {LONGEST:g} times that is our guess"
MEASURED = "the run measures its first steps and says how long all of them will take"
ON_A_CPU = f"time: not predicted for a CPU; {MEASURED}"
IN_FLOAT32 = f"time: not predicted for float32, since the cards' speeds that are known here are of 16 bit; {MEASURED}"


@dataclass(frozen=True)
class Work:
    """What a run has to do.

    Attributes:
        samples: of all steps.
        products: operations that are the same in each plan, which the time of a sample leaves out: BASIC's, a
            gate's looks and evaluations.
        processes: how many share it, each on a card of its own.
        uncounted: what else it has to do, of which the time isn't known here.
    """

    steps: int
    samples: int
    products: float = 0.0
    processes: int = 1
    uncounted: str = ""

    def seconds(self, sample_seconds: float, card: Card) -> float:
        """How long it takes on a card, with a plan's time for a sample there."""
        return (self.samples * sample_seconds + self.products / card.reached_flops) / self.processes


@dataclass(frozen=True)
class CardTimes:
    """A run on cards that may not be here.

    Attributes:
        planner: its plans, their memory and their time for a sample.
        auto: each card takes the plan that is the fastest there; False: the recipe's own.
    """

    work: Work
    planner: Planner
    auto: bool

    def on(self, card: Card) -> tuple[float, str] | None:
        """Seconds on a card of the table, and the plan; None: the run doesn't fit."""
        plan = self.planner.on(card, own=not self.auto)
        if plan is None:
            return None
        return self.work.seconds(self.planner.time.sample_seconds(plan, card), card), str(plan)


def time_line(work: Work, seconds: float, card: Card, note: str = "") -> str:
    """Hours and energy on a card, and what they rest on.

    Args:
        note: what to say of the number of steps.
    """
    energy = f", {_energy(seconds, card.watts * work.processes)}" if card.watts else ""
    return f"time for {_steps(work, note)}: {hours_text(seconds)}{energy} ({rests_on(work, measured=card.measured)})"


def rests_on(*works: Work, measured: bool) -> str:
    """What a predicted time rests on, how far to trust it, and what it leaves out."""
    sheet = f"{PRODUCTS_SHARE:.0%} and {BYTES_SHARE:.0%} of the data sheets' speeds (assumed)"
    speeds = "the speeds that this card reached just now" if measured else sheet
    left_out = "".join(f"; {what} come on top" for what in dict.fromkeys(w.uncounted for w in works) if what)
    return f"predicted from counted operations, bytes and launches at {speeds}; {UNTIMED}{left_out}"


def show_cards(console: Console, times: dict[str, CardTimes], note: str = "") -> None:
    """Print hours and energy on the cards that all runs fit, and what they rest on.

    Args:
        times, note: as in ``cards_table``.
    """
    say = speaker(console)
    if not all(one.planner.machine.in_16_bit for one in times.values()):
        say(IN_FLOAT32)
        return
    table = cards_table(times, note)
    show(console, table)
    why = rests_on(*(one.work for one in times.values()), measured=False)
    say(f"the time is {why}" if table.rows else "no card of the table has the memory")


def cards_table(times: dict[str, CardTimes], note: str = "") -> Sheet:
    """Hours and energy of runs one after another, on the cards that all of them fit.

    Args:
        times: by the name of the run.
        note: what to say of the number of steps.
    """
    alone = next(iter(times.values())) if len(times) == 1 else None
    of = f" for {_steps(alone.work, note)}" if alone else ""
    columns = ("time", "energy", *[""] * alone.auto) if alone else (*times, "all", "energy")
    table = Sheet(("card", "memory", *columns), f"time{of} on a card (predicted)")
    for card in CARDS:
        found = [one.on(card) for one in times.values()]
        rows = [row for row in found if row is not None]
        if len(rows) < len(found):
            continue
        whole = sum(seconds for seconds, _ in rows)
        cells = [hours_text(seconds) for seconds, _ in rows] + [hours_text(whole)] * (alone is None)
        cells += [_energy(whole, card.watts), *[rows[0][1]] * (alone is not None and alone.auto)]
        table.add(card.name, f"{card.gib:g} GB", *cells)
    return table


def _steps(work: Work, note: str) -> str:
    return f"{work.steps:,} steps ({note})" if note else f"{work.steps:,} steps"


def hours_text(seconds: float) -> str:
    """A time as people say it: 40 s, 12 min, 3 h 20 min, 12 h, 3.1 days."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{max(math.ceil(seconds), 1)} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 10 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{seconds / 3600:.0f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


def _energy(seconds: float, watts: float) -> str:
    kwh = seconds * watts / 3.6e6
    if kwh < 0.01:
        return "under 0.01 kWh"
    return f"about {kwh:,.0f} kWh" if kwh >= 10 else f"about {kwh:.2g} kWh"
