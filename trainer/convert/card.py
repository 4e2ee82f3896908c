"""The README of a converted folder, and the licence files that go with it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ...teacher_cache.durable import write_durably
from ..export.card import copy_terms


def write_card(folder: Path, source: Path, report: Mapping[str, Any]) -> None:
    """Say in README.md what the folder was made of, under whose licence, and copy licence files.

    Args:
        folder: to write into.
        source: the checkpoint.
        report: of the conversion.
    """
    head = {"library_name": "transformers", "pipeline_tag": "image-text-to-text"}
    head |= _licence(source)
    state = yaml.safe_dump(head, sort_keys=False)
    text = (
        f"---\n{state}---\n\n# {report['title']}, converted\n\n"
        f"The checkpoint `{report['source']}` as a Hugging Face Llava folder, made by "
        f"`medalign student convert --family {report['family']}`: no number was trained or tuned. "
        "`conversion.json` lists every file and tensor it was made of. The licence of the original "
        "binds it.\n\nFor research. It is no medical device.\n"
    )
    copy_terms(source, folder)
    write_durably(folder / "README.md", text.encode())


def _licence(source: Path) -> dict[str, str]:
    """Licence keys of the README.md of the original."""
    try:
        text = (source / "README.md").read_text(encoding="utf-8")
        head = yaml.safe_load(text.split("---")[1]) if text.startswith("---") else {}
        keys = ("license", "license_name", "license_link", "base_model")
        return {key: head[key] for key in keys if isinstance(head.get(key), str)}
    except (OSError, ValueError, AttributeError, yaml.YAMLError):
        return {}
