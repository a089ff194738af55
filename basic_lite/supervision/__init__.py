"""BASIC itself: taps in the LLM's shallow layers → target v̂ and patch weights a → DAS and SDS.

Method: arXiv 2508.06895. Nothing here asserts that it helps: the refinement curve measures whether v̂ is better than v.
"""

from basic_lite.resampling import Interval
from basic_lite.supervision.health import Health
from basic_lite.supervision.losses import SupervisionLosses
from basic_lite.supervision.premise import RefinementCurve, refinement_curve
from basic_lite.supervision.supervision import Supervision, choose_kernels
from basic_lite.supervision.taps import Capture

__all__ = [
    "Capture",
    "Health",
    "Interval",
    "RefinementCurve",
    "Supervision",
    "SupervisionLosses",
    "choose_kernels",
    "refinement_curve",
]
