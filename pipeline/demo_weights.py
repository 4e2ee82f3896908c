"""Weights of the `demo` expert: random, but the same to the last bit on every machine."""

import math
import zlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

# Queries and keys this much above unit variance make [cls] attention prefer some patches
# clearly; at 1 it is nearly uniform, and there would be nothing to distil.
_SHARPNESS = 1.7


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
