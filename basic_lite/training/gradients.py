"""Check in the first step that everything that should learn has a gradient."""

from collections.abc import Sequence

from torch import Tensor

from basic_lite.errors import UserError
from basic_lite.model.adapt import lora_parameters, projector_parameters
from basic_lite.model.parts import Parts

MOST_FAULTS = 10


def gradient_faults(parts: Parts, *, projector: bool = True) -> list[str]:
    """Trainable parts without a finite, non-zero gradient, each as a sentence.

    The projector's two layers are parts of their own, and so is LoRA on each linear layer. At step 1 LoRA's A matrices
    have gradient zero by construction (B is zero), so a part needs one non-zero gradient.
    """
    faults = []
    for part, gradients in _gradients(parts, projector=projector).items():
        if not gradients:
            faults.append(f"{part}: no gradient (frozen, or not reached by the loss)")
        elif not _finite(gradients):
            faults.append(f"{part}: the gradient is not finite")
        elif not any(bool((g != 0).any()) for g in gradients):
            faults.append(f"{part}: the gradient is zero everywhere")
    return faults


def broken_gradients(parts: Parts) -> list[str]:
    """Trainable parts with a gradient that isn't finite."""
    return [part for part, gradients in _gradients(parts, projector=True).items() if not _finite(gradients)]


def _gradients(parts: Parts, *, projector: bool) -> dict[str, list[Tensor]]:
    """The gradients that each trainable part has."""
    named = []
    if projector:
        named += [(f"projector {name.rsplit('.', 1)[0]}", p) for name, p in projector_parameters(parts).items()]
    for name, parameter in lora_parameters(parts.model).items():
        layer = name.split(".lora_")[0].removeprefix("model.language_model.")
        named.append((f"LoRA on {layer}", parameter))
    found: dict[str, list[Tensor]] = {}
    for part, parameter in named:
        gradients = found.setdefault(part, [])
        if parameter.requires_grad and parameter.grad is not None:
            gradients.append(parameter.grad)
    return found


def _finite(gradients: Sequence[Tensor]) -> bool:
    return all(bool(gradient.isfinite().all()) for gradient in gradients)


class GradientCheck:
    """Stops the run when a part that should learn has no gradient at the first step.

    A first step of text alone can't reach the projector. That part is then looked at in the first step with an image.
    """

    def __init__(self, parts: Parts, *, projector_seen: bool = False) -> None:
        """
        Args:
            projector_seen: an earlier part of this run has looked at the projector.
        """
        self.parts = parts
        self.projector_seen = projector_seen
        self._adapter_seen = False

    def look(self, step: int, *, has_image: bool) -> None:
        """Look at the gradients after a step's backwards, before its update.

        Raises:
            UserError: a part has no gradient.
        """
        if self._adapter_seen and (self.projector_seen or not has_image):
            return
        faults = gradient_faults(self.parts, projector=has_image and not self.projector_seen)
        if faults:
            more = f"\n  - … and {len(faults) - MOST_FAULTS} more" if len(faults) > MOST_FAULTS else ""
            raise UserError(
                f"after the backward of step {step} not every trainable part has a gradient:\n  - "
                + "\n  - ".join(faults[:MOST_FAULTS])
                + more
                + "\nThe run is stopped: it would train less than the recipe says. "
                "A gradient that is zero from the start often means that labels are empty (see --dry-run). "
                "A gradient that isn't finite often means a learning rate that is too high or a type that is too "
                "coarse (training.learning_rate, model.dtype)"
            )
        self._adapter_seen = True
        self.projector_seen |= has_image

    def finish(self, steps: int) -> None:
        """Check the projector at the end of a run.

        Raises:
            UserError: no step had an image, so the projector has learnt nothing.
        """
        if not self.projector_seen:
            raise UserError(
                f"none of the run's {steps} steps had a sample with an image, so the projector has learnt nothing; "
                "raise training.max_steps, or take more samples with images into data.train"
            )
