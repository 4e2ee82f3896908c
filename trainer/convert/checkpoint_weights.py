"""The tensors of a folder, safetensors or pickled, read one at a time."""

import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..students.family import first_line
from .errors import ConvertError, read_object

SAFETENSORS_INDEX: Final = "model.safetensors.index.json"
PICKLED_INDEX: Final = "pytorch_model.bin.index.json"

_DTYPES: Final = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


_LEGACY: Final = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")
"""How files of torch before 1.6 begin: its magic number, pickled."""


@dataclass(frozen=True, slots=True)
class Stored:
    """Where a tensor lies, and what it is."""

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype


class Weights:
    """The tensors of one folder; only their names and shapes are held.

    Attributes:
        folder: that they lie in.
        tensors: what there is, by name.
        files: that hold them, the index included.
        beside: weight files that are not read, because the folder has better ones.
    """

    def __init__(
        self,
        folder: Path,
        tensors: Mapping[str, Stored],
        files: tuple[Path, ...],
        beside: tuple[Path, ...],
    ) -> None:
        self.folder = folder
        self.tensors = tensors
        self.files = files
        self.beside = beside
        self._pickled: tuple[Path, Mapping[str, Tensor]] | None = None

    @classmethod
    def open(cls, folder: Path) -> Self | None:
        """Read names and shapes; None when the folder has no weights.

        Sharded or single safetensors come before pickles, as in transformers.

        Raises:
            ConvertError: a file is missing, damaged, or holds other tensors than its index says.
        """
        listing = _weight_files(folder)
        if listing is None:
            return None
        index, files = listing
        promised = {} if index is None else _promised(folder / index)
        tensors: dict[str, Stored] = {}
        for file in files:
            stored = _shapes(file)
            for name in sorted(stored.keys() & tensors.keys()):
                raise ConvertError(f"tensor {name} is in {tensors[name].file} and in {file}")
            if index is not None:
                _keeps_promise(file, stored, promised)
            tensors |= stored
        read = files if index is None else [folder / index, *files]
        patterns = ("*.safetensors", "pytorch_model*.bin")
        others = [path for pattern in patterns for path in sorted(folder.glob(pattern))]
        beside = tuple(path for path in others if path not in files)
        return cls(folder, tensors, tuple(read), beside)

    def read(self, name: str) -> Tensor:
        """Map one tensor into memory; its pages are read as they are used.

        Raises:
            ConvertError: the file is damaged.
        """
        file = self.tensors[name].file
        if file.suffix != ".safetensors":
            if self._pickled is None or self._pickled[0] != file:
                self._pickled = (file, _unpickled(file))
            return self._pickled[1][name]
        # Opened anew for each tensor: a file that stays open keeps all its pages mapped.
        with _opened(file) as opened:
            tensor: Tensor = opened.get_tensor(name)
        return tensor


def _weight_files(folder: Path) -> tuple[str | None, list[Path]] | None:
    """Name of the index, if any, and the files; None when there are no weights."""
    for index, single in (
        (SAFETENSORS_INDEX, "model.safetensors"),
        (PICKLED_INDEX, "pytorch_model.bin"),
    ):
        if (folder / index).is_file():
            names = sorted(set(_promised(folder / index).values()))
            lost = [name for name in names if not (folder / name).is_file()]
            if lost:
                raise ConvertError(
                    f"{folder / index} names {len(names)} files, {len(lost)} of them missing: "
                    f"{', '.join(lost[:5])}; copy the folder again"
                )
            return index, [folder / name for name in names]
        if (folder / single).is_file():
            return None, [folder / single]
    return None


def _promised(index: Path) -> dict[str, str]:
    """File of each tensor, as an index says."""
    files = read_object(index).get("weight_map")
    if not isinstance(files, dict):
        raise ConvertError(
            f"{index}: weight_map is {files!r}, expected the file of each tensor; copy it again"
        )
    for tensor, name in files.items():
        if not isinstance(name, str):
            raise ConvertError(f"{index}: weight_map gives {tensor} the file {name!r}")
        if Path(name).name != name:
            raise ConvertError(f"{index} names a file outside its folder: {name}")
    return files


def _keeps_promise(file: Path, stored: Mapping[str, Stored], promised: Mapping[str, str]) -> None:
    listed = {name for name, shard in promised.items() if shard == file.name}
    for what, names in (("lacks", listed - stored.keys()), ("also holds", stored.keys() - listed)):
        if names:
            raise ConvertError(
                f"{file} {what} {', '.join(sorted(names)[:5])} ({len(names)} in all) against the "
                "index beside it; copy the folder again"
            )


def _shapes(file: Path) -> dict[str, Stored]:
    if file.suffix != ".safetensors":
        return {
            name: Stored(file, tuple(tensor.shape), tensor.dtype)
            for name, tensor in _unpickled(file).items()
        }
    with _opened(file) as opened:
        return dict(_listed(file, opened))


def _listed(file: Path, opened: Any) -> Iterator[tuple[str, Stored]]:
    for name in opened.keys():  # noqa: SIM118 - no mapping
        part = opened.get_slice(name)
        dtype = part.get_dtype()
        if dtype not in _DTYPES:
            raise ConvertError(
                f"{file}: tensor {name} is stored as {dtype}, which is not converted"
            )
        yield name, Stored(file, tuple(part.get_shape()), _DTYPES[dtype])


def _opened(file: Path) -> Any:
    try:
        return safe_open(file, "pt")
    except (SafetensorError, OSError) as error:
        raise ConvertError(
            f"{file} is damaged or cut short ({first_line(error)}); copy it again"
        ) from error


def _unpickled(file: Path) -> dict[str, Tensor]:
    """Names and tensors of a pickle: tensors only, never code, and mapped, not loaded."""
    if not zipfile.is_zipfile(file):
        raise ConvertError(f"{file} {_no_archive(file)}")
    try:
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # its own message recommends what would run the code
        raise ConvertError(
            f"{file} holds other objects than tensors by name, which may be code, or is damaged; "
            "nothing but tensors is ever unpickled: copy it again, or get it as safetensors"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ConvertError(f"{file} holds something else than tensors by name")
    return state


def _no_archive(file: Path) -> str:
    with file.open("rb") as opened:
        start = opened.read(len(_LEGACY))
    if start != _LEGACY:
        return "is damaged or cut short; copy it again"
    return (
        "is in the format of torch before 1.6, which cannot be read piece by piece; save it anew "
        "where it fits into memory: torch.save(torch.load(FILE, weights_only=True), FILE)"
    )
