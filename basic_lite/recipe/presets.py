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
    """A file's values with those of its preset where the file says nothing. ``values`` itself stays as it is.

    Reading a file fills in every default, so the preset comes before that. Sections made in Python fill themselves.
    """
    section = values.get("supervision")
    if not isinstance(section, dict):
        return values
    return {**values, "supervision": {**keys_of(section.get("preset")), **section}}


def differences(section: dict[str, Any], defaults: dict[str, Any]) -> list[str]:
    """Keys of a ``supervision`` section that differ from what its preset sets, as ``key: value``.

    Args:
        defaults: the section's own, which ``paper`` is.
    """
    wanted = {key: defaults[key] for key in _MEASURED_KEYS} | keys_of(section["preset"])
    return [f"{key}: {section[key]}" for key, value in wanted.items() if section[key] != value]
