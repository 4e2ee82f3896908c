"""Whether a checkpoint's tensors are those of a tower, and if not, of which tower they are."""

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from .tower import CONFIG_NAME, TowerConfig, architectures, named_config
from .weights import ExpertError, listed

_BLOCK = re.compile(r"transformer\.resblocks\.(\d+)\.")


def check_fit(
    wanted: Mapping[str, Tensor],
    found: Mapping[str, Tensor],
    *,
    path: Path,
    named: Mapping[str, str],
) -> None:
    """Check that a checkpoint has exactly the tensors of a tower.

    Args:
        wanted: the tower's state dict; meta tensors will do.
        found: the checkpoint's visual tensors.
        path: the checkpoint, for the message.
        named: expert name -> architecture, proposed before plain architectures.

    Raises:
        ExpertError: a tensor has another shape, is missing, or is not the tower's; the message
            proposes an expert that the weights fit.
    """
    problems = _shape_problems(wanted, found) or _key_problems(wanted, found)
    if problems:
        raise ExpertError(f"{path}: {'; '.join([*problems, *_proposal(found, named)])}")


def _shape_problems(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    names = [name for name in wanted if name in found and found[name].shape != wanted[name].shape]
    if not names:
        return []
    more = f" (and {len(names) - 1} more shapes differ)" if len(names) > 1 else ""
    shapes = [tuple(tensors[names[0]].shape) for tensors in (found, wanted)]
    return [f"visual.{names[0]} is {shapes[0]}, this expert takes {shapes[1]}{more}"]


def _key_problems(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    missing = [f"visual.{name}" for name in wanted if name not in found]
    unexpected = [f"visual.{name}" for name in found if name not in wanted]
    kinds = (("missing", missing), ("unexpected", unexpected))
    return [f"{kind} keys: {listed(names)}" for kind, names in kinds if names]


def _proposal(found: Mapping[str, Tensor], named: Mapping[str, str]) -> list[str]:
    if any(name.startswith("trunk.") for name in found):
        return [f"the weights are of a timm tower: give its folder with {CONFIG_NAME}"]
    signature = _signature_of_weights(found)
    candidates = {name: named_config(architecture) for name, architecture in named.items()}
    candidates |= {f"openclip:{name}": named_config(name) for name in architectures()}
    fitting = [name for name, config in candidates.items() if _signature(config) == signature]
    # Shapes cannot tell whether a tower was trained with QuickGELU; list both sorts.
    return [f"the weights have the shapes of expert {listed(fitting)}"] if fitting else []


def _signature_of_weights(found: Mapping[str, Tensor]) -> tuple[int, ...] | None:
    """Return image side, patch side, width, blocks and embedding width, if they can be seen."""
    try:
        conv, tokens, proj = (
            found[name].shape for name in ("conv1.weight", "positional_embedding", "proj")
        )
        side, patch = round((tokens[0] - 1) ** 0.5), conv[3]
        blocks = {match[1] for name in found if (match := _BLOCK.match(name))}
    except (KeyError, IndexError):
        return None
    return (side * patch, patch, conv[0], len(blocks), proj[-1])


def _signature(config: TowerConfig) -> tuple[object, ...]:
    vision = {"image_size": 224, "patch_size": 16, "width": 768, "layers": 12, **config.vision}
    if config.timm:
        return ()
    keys = ("image_size", "patch_size", "width", "layers")
    return (*(vision[key] for key in keys), config.embed_dim)
