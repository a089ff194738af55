"""The recipe keys as texts: names, types in plain words, defaults, documentation; the nearest one."""

import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin

from basic_lite.recipe.problems import KeyPath
from basic_lite.recipe.schema import Recipe, Section
from basic_lite.recipe.yaml import write_yaml

# What other tools call these keys; similarity of spelling would not find them.
SYNONYMS = {
    "lr": "training.learning_rate",
    "batch_size": "training.global_batch",
    "per_device_train_batch_size": "training.micro_batch",
    "gradient_accumulation_steps": "training.global_batch",
    "num_train_epochs": "training.epochs",
    "steps": "training.max_steps",
    "num_steps": "training.max_steps",
    "mm_projector_lr": "training.projector_learning_rate",
    "projector_lr": "training.projector_learning_rate",
    "lr_projector": "training.projector_learning_rate",
    "lr_lora": "training.learning_rate",
    "lr_scheduler_type": "training.scheduler",
    "r": "lora.rank",
    "lora_r": "lora.rank",
    "lora_alpha": "lora.alpha",
    "lora_dropout": "lora.dropout",
    "target_modules": "lora.targets",
    "model_max_length": "data.max_length",
    "vision_tower": "model.vision",
    "model_name_or_path": "model.llm",
    "image_folder": "data.train.image_dir",
    "data_path": "data.train.path",
    "output_dir": "output",
    "load_in_4bit": "quantization.mode",
}

# Characters of a wrong key that are compared with the right ones.
_COMPARED = 100
# How alike a key must be to be named, in the section where it was looked for and in another one: `lroa` is near `lora`,
# and `version` is near neither `supervision` nor `model.vision`.
_ALIKE, _ALIKE_ELSEWHERE = 0.75, 0.85


@dataclass(frozen=True)
class KeyDoc:
    """One recipe key as documentation shows it."""

    name: str
    type: str
    default: str
    doc: str


def describe_keys(prefix: str = "") -> list[KeyDoc]:
    """Every recipe key (below ``prefix``, when given) with type, default and its line of documentation."""
    return [row for row in _all_keys() if not prefix or row.name == prefix or row.name.startswith(f"{prefix}.")]


@cache
def _all_keys() -> tuple[KeyDoc, ...]:
    return tuple(_describe(Recipe, ()))


def _describe(model: type[Section], path: KeyPath) -> Iterator[KeyDoc]:
    for key, field in model.model_fields.items():
        here = (*path, key)
        section = next((option for option in options(field.annotation) if is_section(option)), None)
        if section is None or field.description:
            default = field.get_default(call_default_factory=True)
            text = "required" if field.is_required() else _default_text(default)
            yield KeyDoc(".".join(here), wanted(field.annotation, field.metadata), text, field.description or "")
        if section is not None:
            yield from _describe(section, here)


def _default_text(value: Any) -> str:
    if value is None:
        return "none"
    return write_yaml({"x": value}).removeprefix("x: ").strip()


def nearest_key(path: KeyPath) -> str | None:
    """The valid key that an unknown one was meant for; None: none is near.

    Same name in another section comes first, then a similar name in the same section, then one anywhere.
    """
    wrong = path[-1].lower()[:_COMPARED]
    if wrong in SYNONYMS:
        return SYNONYMS[wrong]
    if any(row.name == ".".join(path) for row in describe_keys()):
        return ".".join(path)
    # An entry of a list of sources is described without its number.
    section = ".".join(part for part in path[:-1] if not part.isdigit())
    names = [row.name for row in describe_keys()] + [key for key, f in Recipe.model_fields.items() if not f.description]

    def likeness(name: str) -> tuple[bool, float]:
        holder, _, leaf = name.rpartition(".")
        ratio, here = SequenceMatcher(None, wrong, leaf).ratio(), holder == section
        part = (
            (len(wrong) > 1 and leaf.startswith(wrong))
            or wrong.endswith(f"_{leaf}")
            or (here and wrong.startswith(leaf))
        )
        # A little for being where it was looked for.
        return part or ratio >= (_ALIKE if here else _ALIKE_ELSEWHERE), ratio + 0.15 * here

    best = max(names, key=likeness)
    return best if likeness(best)[0] else None


def options(annotation: Any) -> list[Any]:
    """The members of a union, or the annotation alone."""
    return list(get_args(annotation)) if get_origin(annotation) in (Union, types.UnionType) else [annotation]


def is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Section)


def wanted(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """A type in plain words: "an integer of at least 1", "one of cosine, mse, off"."""
    words = " or ".join(_wanted_one(option) for option in options(annotation) if option is not types.NoneType)
    phrases = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
    bounds = [f"{phrases[name]} {getattr(one, name):,}" for one in metadata for name in phrases if hasattr(one, name)]
    return f"{words} of {' and '.join(bounds)}" if bounds else words


def _wanted_one(annotation: Any) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}" if len(inner) > 1 else f"{inner[0]}"
    if origin is list:
        return "a list of sections" if is_section(inner[0]) else f"a list, each entry {wanted(inner[0])}"
    if origin is tuple:
        return f"a list of {len(inner)} numbers"
    if origin is dict:
        return "names with texts"
    if is_section(annotation):
        return f"keys ({', '.join(annotation.model_fields)})"
    return {bool: "true or false", int: "an integer", float: "a number", str: "text"}[annotation]
