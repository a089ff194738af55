"""What ``supervision.preset`` stands for: values of other keys. A key that is given wins over the preset."""

from typing import Any

MEASURED = "measured"

# docs/METHOD.md says what each one does. `paper` is the defaults.
_MEASURED_KEYS: dict[str, Any] = {
    "gate": True,
    "layers": MEASURED,
    "layer_weights": MEASURED,
    "target_norm": "layer",
    "sinks": "drop",
    "guard": 0.5,
}


def keys_of(preset: Any) -> dict[str, Any]:
    """The keys of the section `supervision` that a preset sets, with their values; none for ``paper``."""
    return _MEASURED_KEYS if preset == MEASURED else {}


def with_preset(values: dict[str, Any]) -> dict[str, Any]:
    """A recipe's values with those of its preset where the recipe says nothing. ``values`` itself stays as it is."""
    section = values.get("supervision")
    if not isinstance(section, dict):
        return values
    return {**values, "supervision": {**keys_of(section.get("preset")), **section}}


def differences(section: dict[str, Any]) -> list[str]:
    """Keys of a ``supervision`` section that differ from its preset, as ``key: value``; paper's are the defaults."""
    return [f"{key}: {section[key]}" for key, value in keys_of(section["preset"]).items() if section[key] != value]
