"""What a cache holds, as digests: of each row, and of all of them together."""

import hashlib
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from .arrays import Array
from .chain import order_of
from .schema import CacheCard
from .shard_record import ROW_DIGEST_BYTES


def row_digests_of(arrays: Mapping[str, Array]) -> npt.NDArray[np.uint8]:
    """Return the 128-bit BLAKE2b of each row of stored values, all arrays in order, as [R, 16]."""
    stored = [
        np.ascontiguousarray(values, values.dtype.newbyteorder("<")) for values in arrays.values()
    ]
    digests = []
    for rows in zip(*stored, strict=True):
        sha = hashlib.blake2b(digest_size=ROW_DIGEST_BYTES)
        for row in rows:
            sha.update(row)
        digests.append(sha.digest())
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, ROW_DIGEST_BYTES)


def content_hash(
    card: CacheCard,
    content: npt.NDArray[np.uint8],
    row_digests: npt.NDArray[np.uint8],
    failed: npt.NDArray[np.bool_],
) -> str:
    """Return the SHA-256 (hex) of what a cache holds.

    It depends on the images and their numbers only: not on order, shards, generations, parts,
    restarts, paths, time or library versions.

    Args:
        card: of the cache; its fingerprint counts.
        content: [R, 32], SHA-256 of each row's image file, in any order.
        row_digests: [R, 16], of each row's values.
        failed: [R], rows whose image could not be decoded.
    """
    stored = np.where(failed[:, None], 0, row_digests).astype(np.uint8)
    parts = (content, (~failed)[:, None].astype(np.uint8), stored)
    rows = np.concatenate(parts, axis=1)[order_of(content)]
    return hashlib.sha256(card.fingerprint().encode("ascii") + rows.tobytes()).hexdigest()
