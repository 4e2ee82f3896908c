"""The arithmetic of a square: pad, crop and resize with Pillow's bicubic filter, bit for bit.

Kept apart from the geometry because it has one duty of its own: to equal what LLaVA and
transformers do to a student's image while never holding more than it must.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_STRIP_PIXELS = 1 << 24  # largest padded piece held at once: 48 MiB
_LONGEST_ASPECT = 64  # beyond it the part that `crop` throws away would fill the memory


def padding(height: int, width: int) -> tuple[int, int]:
    """Return columns before and rows above the image; the odd one goes right or below (LLaVA)."""
    side = max(height, width)
    return (side - width) // 2, (side - height) // 2


def resize(rgb: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Return uint8 [height, width, 3], filtered bicubically with antialiasing."""
    return np.array(Image.fromarray(rgb).resize((width, height), Image.Resampling.BICUBIC))


def pad(rgb: NDArray[np.uint8], size: int, fill: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Pad and resize without ever holding the padded square.

    Pillow filters along rows first and then along columns, rounding in between. Doing the two
    passes one by one gives the same bits, at the cost of the image instead of the square.
    """
    height, width = rgb.shape[:2]
    top = padding(height, width)[1]
    canvas = np.empty((max(height, width), size, 3), np.uint8)
    canvas[:] = fill  # rows of padding stay what they are under the first pass
    strips = [resize(strip, len(strip), size) for strip in _strips(rgb, fill)]
    canvas[top : top + height] = np.concatenate(strips)
    return resize(canvas, size, size)


def _strips(rgb: NDArray[np.uint8], fill: tuple[int, int, int]) -> Iterator[NDArray[np.uint8]]:
    """Yield the rows of the image, padded to full width, a few at a time."""
    height, width = rgb.shape[:2]
    if width >= height:
        yield rgb
        return
    left = padding(height, width)[0]
    rows = max(1, _STRIP_PIXELS // height)
    for start in range(0, height, rows):
        piece = rgb[start : start + rows]
        strip = np.empty((len(piece), height, 3), np.uint8)
        strip[:] = fill
        strip[:, left : left + width] = piece
        yield strip


def crop(rgb: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Resize the shorter side to `size` and keep the centre, as CLIP does: [size, size, 3].

    An image more than 64 times as long as wide is resized only where it is kept, which may differ
    from CLIP by one grey level.
    """
    height, width = rgb.shape[:2]
    short, long = min(height, width), max(height, width)
    scaled = int(size * long / short)  # rounded down, as CLIP and transformers do
    start = (scaled - size) // 2
    if long > _LONGEST_ASPECT * short:
        ends = (start * long / scaled, (start + size) * long / scaled)
        box: tuple[float, float, float, float] = (0, ends[0], width, ends[1])
        if width > height:
            box = (ends[0], 0, ends[1], height)
        image = Image.fromarray(rgb)
        return np.array(image.resize((size, size), Image.Resampling.BICUBIC, box=box))
    if width > height:
        return resize(rgb, size, scaled)[:, start : start + size].copy()
    return resize(rgb, scaled, size)[start : start + size].copy()
