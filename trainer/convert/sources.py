"""The files that a conversion reads: their checksums, and whether they are still the same."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from .errors import ConvertError
from .workplace import sha256_file

_SHOWN: Final = 3

Identity = dict[str, dict[str, Any]]
"""Size and SHA-256 of each file, by its name in the report."""


def named_files(source: Path, read: Sequence[Path], tower: Path | None) -> dict[str, Path]:
    """Every file that is read, by a name that holds no path of this machine.

    Args:
        source: the checkpoint.
        read: files of it.
        tower: folder of the vision tower, which may lie elsewhere.
    """
    names: dict[str, Path] = {}
    for path in read:
        if path.is_relative_to(source):
            names[path.relative_to(source).as_posix()] = path
        else:
            folder = tower or path.parent
            names[f"{folder.name}:{path.relative_to(folder).as_posix()}"] = path
    return dict(sorted(names.items()))


def stamps(files: Mapping[str, Path]) -> dict[str, list[int]]:
    """Size and time of each file: what tells quickly that nothing was touched."""
    found = {}
    for name, path in files.items():
        state = path.stat()
        found[name] = [state.st_size, state.st_mtime_ns]
    return found


def identify(
    files: Mapping[str, Path], known: Mapping[str, Any], told: Callable[[int], None]
) -> Identity:
    """Size and SHA-256 of each file; those of an untouched file are taken from an earlier run.

    Args:
        files: from `named_files`.
        known: what an earlier run wrote down: `stamps` and `sources`.
        told: how many more bytes are read.
    """
    now = stamps(files)
    before, digests = known.get("stamps", {}), known.get("sources", {})
    found: Identity = {}
    for name, path in files.items():
        if before.get(name) == now[name] and name in digests:
            told(now[name][0])
            found[name] = digests[name]
        else:
            found[name] = {"bytes": now[name][0], "sha256": sha256_file(path, told)}
    return found


def unchanged(files: Mapping[str, Path], before: Mapping[str, list[int]]) -> None:
    """Refuse a result that was read while a source changed.

    Raises:
        ConvertError: names the file.
    """
    now = stamps(files)
    for name, path in files.items():
        if now[name] != before[name]:
            raise ConvertError(f"{path} changed while it was converted; run the same command again")


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """In a few words, how two identities differ; empty when they do not."""
    for key in ("family", "dtype", "shard_bytes", "tower", "medalign"):
        if old.get(key) != new.get(key):
            return f"{key} was {old.get(key)!r}, is {new.get(key)!r}"
    before, after = old.get("sources", {}), new.get("sources", {})
    changed = sorted(
        name for name in before.keys() | after.keys() if before.get(name) != after.get(name)
    )
    if not changed:
        return ""
    told = [f"{name} {_what(name, before, after)}" for name in changed[:_SHOWN]]
    more = f" and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
    return ", ".join(told) + more


def _what(name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    if name not in before:
        return "is new"
    return "changed" if name in after else "is gone"
