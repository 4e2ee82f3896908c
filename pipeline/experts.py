"""Experts: frozen CLIP vision towers by name, loaded from local files only."""

import difflib
import math
import os
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ..teacher_cache.schema import ExpertCard, FeatureChoice
from .expert_names import CONFIG_NAME, EXPERT_NAMES, UNIMED, is_folder
from .resample import ExpertOutput
from .tower import Tower, TowerConfig, architectures, named_config, read_config
from .weights import ExpertError, find_checkpoint, listed, read_visual_weights, weights_sha256

DtypeName = Literal["bf16", "fp32"]

_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
_UNIMED_LICENCE = "UniMed-CLIP weights: CC BY-NC 4.0 (non-commercial)"
_BIOMEDCLIP_LICENCE = "BiomedCLIP weights: MIT; published for research use"
_DEMO_LICENCE = "seeded random weights, nobody's work"
_UNKNOWN_LICENCE = "not stated; see where the weights came from"

# 24 x 24 patches, like a student with 336 px and 14 px patches; small enough for two CPU cores.
_DEMO = TowerConfig(
    embed_dim=32,
    vision={
        "image_size": 336,
        "patch_size": 14,
        "width": 64,
        "layers": 3,
        "head_width": 16,
        "mlp_ratio": 2.0,
    },
    quick_gelu=True,
)
# Queries and keys this much above unit variance make [cls] attention prefer some patches
# clearly; at 1 it is nearly uniform, and there would be nothing to distil.
_SHARPNESS = 1.7
_BLOCK = re.compile(r"transformer\.resblocks\.(\d+)\.")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """Where an expert comes from, before anything large is read."""

    name: str
    architecture: str
    config: TowerConfig
    checkpoint: Path | None  # None: the demo's seeded weights
    licence: str


class Expert:
    """A frozen vision tower that gives, in one pass, patches and [cls] attention.

    Attributes:
        card: what a cache records about it.
        mean: [3], what `normalise` subtracts from pixels in 0..1.
        std: [3], what it divides them by.
    """

    def __init__(self, card: ExpertCard, tower: Tower, config: TowerConfig) -> None:
        self.card = card
        self._tower = tower
        self._normalised = config.timm or card.features == "ln_post"
        parameter = next(tower.module.parameters())
        self.device: torch.device = parameter.device
        self.dtype: torch.dtype = parameter.dtype
        self.mean = torch.tensor(config.mean, device=self.device)
        self.std = torch.tensor(config.std, device=self.device)

    def normalise(self, rgb: Tensor) -> Tensor:
        """Turn 8-bit images [B, S, S, 3] into pixels [B, 3, S, S], float32 on the device."""
        pixels = rgb.to(self.device, non_blocking=True).float() / 255
        return ((pixels - self.mean) / self.std).permute(0, 3, 1, 2)

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> ExpertOutput:
        """Return patches and [cls] attention of a batch.

        Patches are the output of the last residual block before `ln_post`, without [cls]; after
        `ln_post` where the card says so, and for timm towers always after their final norm
        (the point the authors use for each). Attention is that of the last block.

        Args:
            pixels: normalised, [B, 3, S, S].

        Raises:
            ExpertError: pixels of another shape.
        """
        side = self.card.image_size
        if pixels.ndim != 4 or pixels.shape[1:] != (3, side, side):
            raise ExpertError(
                f"expert {self.card.name} takes pixels [B, 3, {side}, {side}], "
                f"got {list(pixels.shape)}"
            )
        pixels = pixels.to(self.device, self.dtype)
        return self._tower.run(pixels, normalised=self._normalised)


def load_expert(
    name: str,
    weights: Path | None = None,
    *,
    features: FeatureChoice = "last",
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Expert:
    """Load a vision tower from local files.

    Only the visual part is built and read; its keys must match exactly, and nothing is resized
    to make it fit.

    Args:
        name: one of `EXPERT_NAMES`.
        weights: the checkpoint or the folder that holds it; None for `demo` and for folders.
        features: `last` or `ln_post`; see `Expert.encode`.
        device: where to compute.
        dtype: what to compute in.

    Raises:
        ExpertError: unknown name, weights missing, damaged or of another tower, no such device.
    """
    device = _available(device)
    source = _find(name, weights)
    if features == "ln_post" and source.config.timm:
        raise ExpertError(
            f"expert {source.name}: patches of a timm tower are already taken after its final "
            "norm; use features last"
        )
    tower = Tower(source.config, source.name)
    expected = tower.module.state_dict()
    if source.checkpoint is None:
        tensors = demo_weights(expected)
    else:
        tensors = read_visual_weights(source.checkpoint)
        _check_fit(expected, tensors, source.checkpoint)
    card = ExpertCard(
        name=source.name,
        architecture=source.architecture,
        weights_sha256=weights_sha256(tensors),
        features=features,
        grid=tower.grid,
        width=tower.width,
        image_size=tower.image_size,
        # As the authors do: UniMed's raw tokens are normalised first, a timm trunk's, which
        # its final norm has brought to one scale, are not.
        normalise_before_interpolation=not source.config.timm,
        licence=source.licence,
    )
    tower.load(tensors, device, dtype)
    return Expert(card, tower, source.config)


def _available(device: str | torch.device) -> torch.device:
    try:
        device = torch.device(device)
    except RuntimeError as error:
        raise ExpertError(f"device {device!r} is not one that torch knows") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ExpertError(f"device {device} needs CUDA, but torch finds no CUDA device here")
    return device


def _find(name: str, weights: Path | None) -> _Source:
    if name == "demo":
        if weights is not None:
            raise ExpertError("expert demo brings its own seeded weights; leave --weights away")
        return _Source(
            name=name,
            architecture="demo-ViT-14-336-quickgelu",
            config=_DEMO,
            checkpoint=None,
            licence=_DEMO_LICENCE,
        )
    if name in UNIMED:
        return _named(name, UNIMED[name], weights, _UNIMED_LICENCE)
    if name.startswith("openclip:"):
        return _named(name, name.removeprefix("openclip:"), weights, _UNKNOWN_LICENCE)
    if name == "biomedclip":
        folder = _needed(name, weights)
        folder = folder.parent if folder.is_file() else folder
        return _from_folder(name, folder, weights, _BIOMEDCLIP_LICENCE)
    if is_folder(name):
        return _from_folder(Path(name).resolve().name, Path(name), weights, _UNKNOWN_LICENCE)
    raise ExpertError(f"unknown expert {name!r}; known are {', '.join(EXPERT_NAMES)}")


def _needed(name: str, weights: Path | None) -> Path:
    if weights is None:
        raise ExpertError(f"expert {name} needs its weights from a local path: give --weights")
    if not weights.exists():
        raise ExpertError(f"{weights}: no such weights file or folder")
    return weights


def _named(name: str, architecture: str, weights: Path | None, licence: str) -> _Source:
    known = architectures()
    if architecture not in known:
        near = difflib.get_close_matches(architecture, known, n=3)
        hint = f"; near are {', '.join(near)}" if near else ""
        raise ExpertError(f"open_clip knows no architecture {architecture!r}{hint}")
    return _Source(
        name=name,
        architecture=architecture,
        config=named_config(architecture),
        checkpoint=find_checkpoint(_needed(name, weights)),
        licence=licence,
    )


def _from_folder(name: str, folder: Path, weights: Path | None, licence: str) -> _Source:
    config = read_config(folder)
    return _Source(
        name=name,
        architecture=config.describe(),
        config=config,
        checkpoint=find_checkpoint(weights or folder),
        licence=licence,
    )


def load_asked(
    name: str,
    weights: Path | None,
    features: FeatureChoice,
    device: str,
    dtype: DtypeName | None,
) -> Expert:
    """Load an expert on the device of this process: `auto` is its own GPU, or the CPU.

    Without a dtype it computes in bfloat16 on a GPU and in float32 elsewhere.

    Raises:
        ExpertError: see `load_expert`.
    """
    if device == "auto":
        local = int(os.environ.get("LOCAL_RANK", "0"))
        count = torch.cuda.device_count()
        device = f"cuda:{local % count}" if count else "cpu"
    kind = _DTYPES[dtype or ("bf16" if device.startswith("cuda") else "fp32")]
    return load_expert(name, weights, features=features, device=device, dtype=kind)


def dtype_name(dtype: str) -> DtypeName:
    """Return how a command line names a card's dtype."""
    return "bf16" if dtype == "bfloat16" else "fp32"


def describe(expert: Expert) -> str:
    """Describe in one line what an expert is and where it runs."""
    card = expert.card
    kind = str(expert.dtype).removeprefix("torch.")
    return (
        f"expert {card.name}: {card.image_size} px, {card.grid} patches of width {card.width}, "
        f"{kind} on {expert.device}"
    )


def demo_weights(shapes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Draw float32 weights for a tower's state dict, whatever its order.

    Each tensor has its own stream, seeded by its name. Values are uniform with 24 bits taken
    from raw generator output: no logarithm or cosine whose last bit depends on the machine,
    and no global random state touched.
    """
    return {name: _draw(name, tuple(tensor.shape)) for name, tensor in shapes.items()}


def _draw(name: str, shape: tuple[int, ...]) -> Tensor:
    if name.endswith("bias"):
        return torch.zeros(shape)
    if name.startswith("ln_") or ".ln_" in name:
        return torch.ones(shape)
    stream = np.random.PCG64(zlib.crc32(name.encode()))
    bits = np.asarray(stream.random_raw(math.prod(shape)) >> np.uint64(40), dtype=np.float64)
    uniform = torch.from_numpy((bits / 2**23 - 1).astype(np.float32)).reshape(shape)
    if name.endswith("in_proj_weight"):
        uniform[: shape[0] // 3 * 2] *= _SHARPNESS
    # A uniform number in -1..1 has variance 1/3; fan-in scaling keeps activations near 1.
    return uniform * math.sqrt(3 / _fan_in(name, shape))


def _fan_in(name: str, shape: tuple[int, ...]) -> int:
    if name in ("class_embedding", "positional_embedding"):
        return 4 * shape[-1]  # content must outweigh position
    return math.prod(shape[1:]) if name != "proj" else shape[0]


def _check_fit(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor], path: Path) -> None:
    """Check that a checkpoint has exactly the tensors of a tower, which may be meta tensors.

    Raises:
        ExpertError: a tensor has another shape, is missing, or is not the tower's; the message
            proposes an expert that the weights fit.
    """
    problems = _shape_problems(expected, tensors) or _key_problems(expected, tensors)
    if problems:
        raise ExpertError(f"{path}: {'; '.join([*problems, *_proposal(tensors)])}")


def _shape_problems(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> list[str]:
    names = [
        name for name in expected if name in tensors and tensors[name].shape != expected[name].shape
    ]
    if not names:
        return []
    more = f" (and {len(names) - 1} more shapes differ)" if len(names) > 1 else ""
    shapes = [tuple(state[names[0]].shape) for state in (tensors, expected)]
    return [f"visual.{names[0]} is {shapes[0]}, this expert takes {shapes[1]}{more}"]


def _key_problems(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> list[str]:
    missing = [f"visual.{name}" for name in expected if name not in tensors]
    unexpected = [f"visual.{name}" for name in tensors if name not in expected]
    kinds = (("missing", missing), ("unexpected", unexpected))
    return [f"{kind} keys: {listed(names)}" for kind, names in kinds if names]


def _proposal(tensors: Mapping[str, Tensor]) -> list[str]:
    if any(name.startswith("trunk.") for name in tensors):
        return [f"the weights are of a timm tower: give its folder with {CONFIG_NAME}"]
    signature = _signature_of_weights(tensors)
    candidates = {name: named_config(architecture) for name, architecture in UNIMED.items()}
    candidates |= {f"openclip:{name}": named_config(name) for name in architectures()}
    fitting = [name for name, config in candidates.items() if _signature(config) == signature]
    # Shapes cannot tell whether a tower was trained with QuickGELU; list both sorts.
    return [f"the weights have the shapes of expert {listed(fitting)}"] if fitting else []


def _signature_of_weights(tensors: Mapping[str, Tensor]) -> tuple[int, ...] | None:
    """Return image side, patch side, width, blocks and embedding width, if they can be seen."""
    try:
        conv, tokens, proj = (
            tensors[name].shape for name in ("conv1.weight", "positional_embedding", "proj")
        )
        side, patch = round((tokens[0] - 1) ** 0.5), conv[3]
        blocks = {match[1] for name in tensors if (match := _BLOCK.match(name))}
    except (KeyError, IndexError):
        return None
    return (side * patch, patch, conv[0], len(blocks), proj[-1])


def _signature(config: TowerConfig) -> tuple[object, ...]:
    vision = {"image_size": 224, "patch_size": 16, "width": 768, "layers": 12, **config.vision}
    if config.timm:
        return ()
    keys = ("image_size", "patch_size", "width", "layers")
    return (*(vision[key] for key in keys), config.embed_dim)
