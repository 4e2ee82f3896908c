"""Write every `zarr.json` of a store: the group, its row arrays and the index of a seal.

zarr-python makes them, and this is the only file that imports it: what reads a store does not.
A reader compares metadata whole with its own description, so a release of zarr-python that spells
something else is refused here, before it writes a store that no reader opens.
"""

import json
from collections.abc import Mapping
from typing import Any

import zarr
from zarr.storage import MemoryStore

from .attributes import ROOT, Attributes
from .format.arrays import (
    Array,
    check_metadata,
    group_metadata,
    row_arrays,
    table_files,
    table_metadata,
)
from .index import INDEX, index_folder
from .schema import FORMAT, CacheCard, TeacherCacheError
from .storage.local import Storage
from .storage.untrusted import canonical_json, with_digest


def save_attributes(store: Storage, attributes: Attributes, *, replace: bool) -> None:
    """Write the root `zarr.json`; without `replace` an existing one stays."""
    fields: dict[str, Any] = {
        "format": FORMAT,
        "state": attributes.state,
        "card": attributes.card.to_json(),
        "fingerprint": attributes.card.fingerprint(),
    }
    if attributes.seal is not None:
        fields |= attributes.seal.to_json()
    data = zarr_json(group_metadata({"medalign": with_digest(fields)}))
    if replace:
        store.write(ROOT, data)
    elif store.size(ROOT) is None:  # a store with nothing to do may be read-only
        store.publish(ROOT, data)


def ensure_metadata(store: Storage, card: CacheCard, extent: int) -> None:
    """Write the metadata of row arrays that is missing, damaged, or of fewer rows."""
    for array in row_arrays(card):
        name, metadata = f"{array.name}/{ROOT}", array.metadata(extent)
        try:
            check_metadata(store, name, metadata, may_be_longer=True)
        except TeacherCacheError:  # it follows from card and plans, so nothing is lost
            store.write(name, zarr_json(metadata))


def save_tables(store: Storage, generations: int, tables: Mapping[str, Array]) -> None:
    """Write every table of the seal that covers so many generations, durably."""
    folder = index_folder(generations)
    for name, values in tables.items():
        for file, data in table_files(values).items():
            store.write(f"{folder}/{name}/{file}", data)
        metadata = table_metadata(values.shape, values.dtype.name)
        store.write(f"{folder}/{name}/{ROOT}", zarr_json(metadata))
    for group in (folder, INDEX):
        store.write(f"{group}/{ROOT}", zarr_json(group_metadata({})))


def zarr_json(metadata: Mapping[str, Any]) -> bytes:
    """Return the `zarr.json` that zarr-python writes for a group or array, one spelling per value.

    Raises:
        TeacherCacheError: this release of zarr-python writes other metadata than format 1 has.
    """
    files: dict[str, Any] = {}  # in memory: the store itself is written durably, by `Storage`
    if metadata["node_type"] == "group":
        zarr.create_group(MemoryStore(files), attributes=metadata["attributes"], zarr_format=3)
    else:
        _create_array(MemoryStore(files), metadata)
    written = json.loads(files[ROOT].to_bytes())
    if written.get("storage_transformers") == []:
        del written["storage_transformers"]  # Zarr allows both spellings; stores never had it
    for key in sorted(written.keys() | metadata.keys()):
        if written.get(key) != metadata.get(key):
            raise TeacherCacheError(
                f"zarr-python {zarr.__version__} writes {key} as "
                f"{written.get(key)!r:.200}, format {FORMAT} has {metadata.get(key)!r:.200}; "
                "install the release of zarr that this medalign was tested with"
            )
    return canonical_json(written)


def _create_array(memory: MemoryStore, metadata: Mapping[str, Any]) -> None:
    chunk, codecs = metadata["chunk_grid"]["configuration"]["chunk_shape"], metadata["codecs"]
    shard = None
    if codecs[0]["name"] == "sharding_indexed":
        sharding = codecs[0]["configuration"]
        shard, chunk, codecs = chunk, sharding["chunk_shape"], sharding["codecs"]
    zarr.create_array(
        memory,
        shape=metadata["shape"],
        dtype=metadata["data_type"],
        chunks=chunk,
        shards=shard,
        filters=None,
        serializer=codecs[0],
        compressors=codecs[1:],
        fill_value=metadata["fill_value"],
        chunk_key_encoding={"name": "default", "separator": "."},
        zarr_format=3,
    )
