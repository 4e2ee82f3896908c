"""Names of experts: some are known everywhere, any other is a folder."""

from pathlib import Path

UNIMED = {"unimed-l": "ViT-L-14-336-quickgelu", "unimed-b": "ViT-B-16-quickgelu"}
"""The UniMed-CLIP towers and open_clip's names of their architectures."""


def is_folder(name: str) -> bool:
    """Say whether an expert's name is the path of a folder that is there."""
    known = name in (*UNIMED, "biomedclip", "demo") or name.startswith("openclip:")
    return not known and Path(name).is_dir()
