"""Settings that others ran the decoders with, and `--set` on top of them."""

from collections.abc import Mapping, Sequence
from dataclasses import Field
from typing import Any, Final

from .settings import SPECS, DecodingError, Spec, settings_of

Values = Mapping[str, Any]

_LONG: Final = {"max_new_tokens": 1024}
_SHORT: Final = {"max_new_tokens": 128}
_EVEN_TO_14: Final = ",".join(str(k) for k in range(0, 16, 2))

PRESETS: Final[Mapping[str, Mapping[str, Values]]] = {
    "paper": {
        "vcd": {"alpha": 1.0, "beta": 0.1, "noise_step": 500},
        "dola": {"layers": "low", "relative_top": 0.1, "repetition_penalty": 1.2},
        "opera": {"scale": 50.0, "threshold": 15, "candidates": 5, "weight": 1.0},
        "avisc": {"alpha": 2.5, "beta": 0.1, "gamma": 0.5, "lambda": 1.0},
        "m3id": {"lambda": 0.02, "gate": 0.3},
        "damro": {
            "alpha": 2.0,
            "beta": 0.1,
            "top_tokens": 10,
            "mode": "drop",
            "layer": -2,
            "split_heads": False,
        },
        "pai": {"alpha": 0.2, "gamma": 1.1, "first_layer": 2},
    },
    "medalign-llava-med": {
        "greedy": _LONG,
        "beam": _LONG,
        "nucleus": _LONG,
        "vcd": {**_LONG, "top_k": 50},
        "dola": {**_LONG, "layers": _EVEN_TO_14},
        "opera": {**_SHORT, "scale": 25.0, "threshold": 25},
        "avisc": _LONG,
        "m3id": _LONG,
        "damro": _LONG,
        "pai": _LONG,
    },
    "medalign-huatuo": {
        "greedy": _SHORT,
        "beam": _SHORT,
        "nucleus": _LONG,
        "vcd": {**_LONG, "top_k": 50},
        "dola": {**_LONG, "layers": _EVEN_TO_14},
        "opera": {**_SHORT, "scale": 50.0, "threshold": 15},
        "avisc": _LONG,
        "m3id": {**_LONG, "temperature": 0.7},
        "damro": _LONG,
        "pai": _LONG,
    },
}
"""By preset and decoder: settings that differ from its defaults, or must keep them."""


def make_spec(decoder: str, preset: str | None = None, values: Values | None = None) -> Spec:
    """Make a decoder's settings from its defaults, a preset and single values; the last wins.

    Args:
        decoder: its name.
        preset: name of a preset, None for the defaults.
        values: settings by name; texts are read as the setting's type.

    Raises:
        DecodingError: an unknown name, with the known ones, or a value that cannot be.
    """
    if decoder not in SPECS:
        raise DecodingError(f"decoder is {decoder!r}, known are {', '.join(SPECS)}")
    if preset is not None and preset not in PRESETS:
        raise DecodingError(f"preset is {preset!r}, known are {', '.join(PRESETS)}")
    kind = SPECS[decoder]
    chosen = {} if preset is None else PRESETS[preset].get(decoder, {})
    known = dict(settings_of(kind))
    fields: dict[str, Any] = {}
    for name, value in {**chosen, **(values or {})}.items():
        if name not in known:
            raise DecodingError(
                f"{decoder} has no setting {name!r}; its settings are {', '.join(known)}"
            )
        typed = _read(known[name], value) if isinstance(value, str) else value
        fields[known[name].name] = typed
    return kind(**fields)


def read_assignments(texts: Sequence[str]) -> dict[str, str]:
    """Read `--set key=value` options.

    Raises:
        DecodingError: no `=`, or a key is given twice.
    """
    settings: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        name = name.strip()
        if not equals or not name:
            raise DecodingError(f"--set takes key=value, got {text!r}")
        if name in settings:
            raise DecodingError(f"--set {name} is given twice")
        settings[name] = value.strip()
    return settings


def _read(one: "Field[Any]", text: str) -> Any:
    """Return a text as the type of a setting; the setting's check refuses what stays text."""
    if one.type is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    if one.type is str:
        return text
    try:
        return float(text) if one.type is float else int(text)
    except ValueError:
        return text
