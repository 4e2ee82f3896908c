"""Names of experts, for the command line too: no torch here."""

from pathlib import Path

UNIMED = {"unimed-l": "ViT-L-14-336-quickgelu", "unimed-b": "ViT-B-16-quickgelu"}
"""The UniMed-CLIP towers and open_clip's names of their architectures."""

CONFIG_NAME = "open_clip_config.json"
"""What a folder must hold to be an expert."""

EXPERT_NAMES = (*UNIMED, "biomedclip", "demo", "openclip:ARCH", f"a folder with {CONFIG_NAME}")
"""What `load_expert` takes."""


def is_folder(name: str) -> bool:
    """Return whether an expert's name is the path of an existing folder."""
    known = name in (*UNIMED, "biomedclip", "demo") or name.startswith("openclip:")
    return not known and Path(name).is_dir()
