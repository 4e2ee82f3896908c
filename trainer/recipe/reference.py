"""The recipe reference in Markdown, from the recipe's own types and docstrings."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from ..run.folder import FREE_KEYS
from .recipe import Recipe

COMMAND: Final = "medalign recipes reference > docs/recipe.md"
_HEAD: Final = f"""\
# The recipe

Every key of a recipe. An unknown key is an error, and None in the text is `null` in YAML. On the
command line, `--set section.key=value` overrides a key. Keys with a * may differ when a run is
resumed, as they leave its numbers as they are (of `data.batch_size` and `data.accumulation`, the
product with the number of ranks must stay). Beside the sections, `extends` names recipes, parts and
files that a recipe is composed of; [training.md](training.md#recipes-made-of-others) explains it.

Written by `{COMMAND}` from the code; do not edit it here.
"""
_BOUNDS: Final = {
    "minimum": "at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "below {}",
}


def reference() -> str:
    """Write the reference, section by section in the order of the recipe."""
    schema = Recipe.model_json_schema()
    parts = [_HEAD]
    for section, entry in schema["properties"].items():
        table = schema["$defs"][_reference_of(entry)]
        parts.append("\n".join(_table(section, table)))
        for key, inner in table["properties"].items():
            if "$ref" in inner.get("items", {}):
                below = schema["$defs"][_reference_of(inner["items"])]
                parts.append("\n".join(_table(f"{section}.{key}", below, "###")))
    return "\n".join(parts)


def _table(section: str, schema: Mapping[str, Any], level: str = "##") -> Iterator[str]:
    yield f"{level} {section}\n"
    yield f"{_one_line(schema['description'])}\n"
    yield "| key | value | default | meaning |"
    yield "|---|---|---|---|"
    for key, entry in schema["properties"].items():
        free = "\\*" if section.startswith("paper") or f"{section}.{key}" in FREE_KEYS else ""
        cells = (
            f"`{key}`{free}",
            _values(entry),
            "required" if key in schema.get("required", ()) else _plain(entry.get("default")),
            _one_line(entry.get("description", "")),
        )
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
    yield ""


def _reference_of(entry: Mapping[str, Any]) -> str:
    """Name of the model that a section's schema points at."""
    pointer: str = entry.get("$ref") or entry["allOf"][0]["$ref"]
    return pointer.rpartition("/")[2]


def _values(entry: Mapping[str, Any]) -> str:
    """Say in words what a key takes."""
    if "anyOf" in entry:
        return " or ".join(_values(option) for option in entry["anyOf"])
    if "enum" in entry:
        return ", ".join(_plain(value) for value in entry["enum"])
    if "const" in entry:
        return _plain(entry["const"])
    if entry.get("type") in ("array", "object") or "$ref" in entry:
        return _several(entry)
    if entry.get("type") == "null":
        return _plain(None)
    bounds = [words.format(entry[name]) for name, words in _BOUNDS.items() if name in entry]
    kind = {"string": "text", "boolean": "`true`, `false`"}.get(entry["type"], entry["type"])
    return ", ".join([kind, *bounds])


def _several(entry: Mapping[str, Any]) -> str:
    """Say in words what a list or a mapping takes."""
    if "prefixItems" in entry:
        items = [_values(item) for item in entry["prefixItems"]]
        return f"list of {len(items)}: {items[0]}"
    if "items" in entry:
        return f"list, each {_values(entry['items'])}"
    return "mapping, below" if "$ref" in entry else "mapping of keys to text"


def _plain(value: Any) -> str:
    """A value as YAML takes it."""
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def _one_line(text: str) -> str:
    return " ".join(text.split())
