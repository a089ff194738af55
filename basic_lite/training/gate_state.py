"""What the gate knows between two looks, and how a look is said on the terminal."""

from dataclasses import dataclass
from typing import Any

from basic_lite.resampling import Interval
from basic_lite.supervision.premise import RefinementCurve
from basic_lite.training.look_lines import pull_text
from basic_lite.training.looks import ASKED


@dataclass
class GateState:
    """What a checkpoint keeps of the gate. JSON."""

    open: bool
    plan: dict[str, Any] | None = None  # the target that was measured; None: the recipe's own
    chosen: bool = False  # all that the recipe leaves open was measured
    steps_on: int = 0  # steps that had BASIC
    verdict: str = "can't tell"  # of the last look
    # The last step at which the premise held, and the pull wasn't seen to lower the loss; None once BASIC goes on.
    refused: int | None = None
    asked: float = 0.0  # forwards of one sample that second opinions and trials have cost


def gate_words(
    was: bool,
    now: GateState,
    curve: RefinementCurve,
    second: RefinementCurve | None,
    change: Interval | None,
    *,
    parted: bool,
    left: bool,
) -> str:
    """What the gate did, on what numbers: not the evaluation's, where the other half chose the target.

    Args:
        left: more may be asked before BASIC goes on.
    """
    which = "samples that its target wasn't chosen on" if parted else "samples"
    found = curve.comparison(which)
    if second is not None:
        found += f"; and on others {second.comparison('samples')}"
    if now.open:
        lowers = "" if change is None else f"; and its pull lowers the loss: {pull_text(change)}"
        return f"BASIC {'stays' if was else 'is'} on: its premise holds, {found}{lowers}"
    doubt = "does not hold here" if now.verdict == "fails" else "isn't shown here"
    if now.verdict == "holds":
        if change is not None:
            refused = f"isn't seen to: {pull_text(change)}"
        elif second is not None:
            refused = "couldn't be tried"
        else:
            refused = "isn't tried now" if now.refused is None else f"wasn't seen to at step {now.refused:,}"
        again = f"before step {2 * now.refused:,}" if now.refused and left else "in this run"
        spent = "" if left else f": trials may take {ASKED:.1%} of a run, and that is spent"
        later = "" if left and not now.refused else f"; it isn't tried again {again}{spent}"
        doubt, found = "holds", f"{found}; but its pull has to lower the loss, and {refused}{later}"
    then = "From here the run trains as LLaVA does" if was else "The run trains as LLaVA does, so nothing is lost"
    return (
        f"BASIC is {'off again' if was else 'off'}: its premise {doubt}, {found}. {then}; "
        "supervision.gate=false trains with BASIC all the same"
    )
