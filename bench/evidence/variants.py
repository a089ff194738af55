"""What is compared: a name, and the recipe keys that make the difference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# The parts of `measured`, each as the keys that turn it on and those that leave the paper's way.
PARTS: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    "norm": ({"supervision.target_norm": "layer"}, {"supervision.target_norm": "none"}),
    "sinks": ({"supervision.sinks": "drop"}, {"supervision.sinks": "keep"}),
    "guard": ({"supervision.guard": 0.5}, {"supervision.guard": None}),
    "gate": ({"supervision.gate": True}, {"supervision.gate": False}),
    "layers": (
        {"supervision.layers": "measured", "supervision.layer_weights": "measured"},
        {"supervision.layers": 0.5, "supervision.layer_weights": "quadratic"},
    ),
}
PAPER: Mapping[str, Any] = {"supervision.preset": "paper"}
MEASURED: Mapping[str, Any] = {"supervision.preset": "measured"}
# No part of BASIC, and so in no preset: it is compared with `off` on the same start.
START: Mapping[str, Any] = {"model.projector_start": "matched"}
FLOAT32: Mapping[str, Any] = {"training.autocast": "off"}

# `off`: the rest is compared with it. `with_…`: the paper's method and one part; `without_…`: all parts but one.
# `…_start`: from a matched projector. `…_float32`: without bf16 autocast, which the real world has.
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "off": {"supervision.enabled": False},
    "paper": PAPER,
    "das": {**PAPER, "supervision.lambda_sds": 0.0},
    "sds": {**PAPER, "supervision.lambda_das": 0.0},
    "measured": MEASURED,
    **{f"with_{part}": {**PAPER, **on} for part, (on, _) in PARTS.items()},
    **{f"without_{part}": {**MEASURED, **out} for part, (_, out) in PARTS.items()},
    "off_float32": {"supervision.enabled": False, **FLOAT32},
    "das_float32": {**PAPER, "supervision.lambda_sds": 0.0, **FLOAT32},
    "off_start": {"supervision.enabled": False, **START},
    "paper_start": {**PAPER, **START},
    "measured_start": {**MEASURED, **START},
}
BASELINE = "off"
