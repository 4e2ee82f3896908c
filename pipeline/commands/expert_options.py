"""Options that name an expert and say where it computes; build, seal and verify take them."""

import importlib.util
from pathlib import Path
from typing import Annotated, Literal

from ...runtime import arguments as args
from ..expert_names import CONFIG_NAME, EXPERT_NAMES, UNIMED, is_folder

_NAMES = (*UNIMED, "biomedclip", "demo")
_OPEN_CLIP = "openclip:"
_no_expert_folder = args.no_folder_of(expert=CONFIG_NAME)


def _known_experts() -> list[str]:
    return [*_NAMES, *(f"{_OPEN_CLIP}{name}" for name in _architectures())]


def _architectures() -> list[str]:
    """List what open_clip can build, by its files: its import would cost that of torch."""
    spec = importlib.util.find_spec("open_clip")
    folders = spec.submodule_search_locations if spec else None
    return sorted(
        path.stem for folder in folders or () for path in Path(folder).glob("model_configs/*.json")
    )


def _no_expert(name: str) -> str:
    if is_folder(name):
        return _no_expert_folder(name)
    known = _known_experts()
    if name in known or (name.startswith(_OPEN_CLIP) and len(known) == len(_NAMES)):
        return ""
    return args.unknown("expert", name, known, EXPERT_NAMES)


def check_weights(expert: str, weights: Path | None) -> None:
    """Refuse an expert without its weights, and weights that it would not read.

    Raises:
        ArgumentError: says which option to give or to leave away.
    """
    if expert == "demo" and weights is not None:
        raise args.ArgumentError(
            "--expert demo brings its own seeded weights; leave --weights away"
        )
    if expert != "demo" and weights is None and not is_folder(expert):
        raise args.ArgumentError(
            f"--expert {expert} needs its weights from a local path; give --weights"
        )


_EXPERT = "unimed-l, unimed-b, biomedclip, demo, openclip:ARCH or a folder."
_WEIGHTS = "Checkpoint file or folder; never downloaded."
_DTYPE = "What the expert computes in."

Expert = Annotated[str, args.option(_EXPERT, problem=_no_expert, known=_known_experts)]
Weights = Annotated[Path | None, args.option(_WEIGHTS, problem=args.no_path)]
Device = Annotated[str, args.option("auto, cpu, cuda or cuda:1.", problem=args.no_device)]
Dtype = Annotated[
    Literal["bf16", "fp32"] | None, args.option(_DTYPE, show_default="bf16 on a GPU, else fp32")
]

# `seal` and `verify` recompute rows, and know from the cache what its build used.
BuildExpert = Annotated[
    str | None,
    args.option(_EXPERT, problem=_no_expert, known=_known_experts, show_default="the build's"),
]
BuildWeights = Annotated[
    Path | None,
    args.option(_WEIGHTS, problem=args.no_path, show_default="where the build found them"),
]
BuildDtype = Annotated[
    Literal["bf16", "fp32"] | None, args.option(_DTYPE, show_default="the build's")
]
RowSeed = Annotated[int, args.option("Seed of the rows that are drawn.", "--seed", min=0)]
