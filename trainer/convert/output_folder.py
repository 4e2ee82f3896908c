"""The hidden folder in which a conversion grows, and what a later run may keep of it."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from ...runtime.files import (
    file_identity,
    lock,
    make_folder,
    put_folder,
    sha256_file,
    write_durably,
)
from .errors import ConvertError, FruitlessError
from .safetensors_writer import Written

RECORD: Final = "conversion.json"
_PLAN: Final = "plan.json"
_DONE: Final = ".done.json"
_LOCK: Final = "lock"
_SHOWN: Final = 3

Identity = dict[str, dict[str, Any]]
"""Size and SHA-256 of each file, by its name in the report."""


class Workplace:
    """Where a conversion is written until it is whole.

    Attributes:
        path: the hidden folder beside that of --out; a later run finds it by this name.
        folder: within it, what becomes the folder of --out.
    """

    def __init__(self, out: Path) -> None:
        self._out = out
        resolved = out.resolve()
        self.path = resolved.with_name(f".{resolved.name}.converting")
        self.folder = self.path / "folder"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Make the folder and keep others out while the block lasts.

        It is deleted where another run could do nothing with it.

        Raises:
            ConvertError: another process is converting to the same place, or it cannot be made.
        """
        try:
            make_folder(self.folder)
        except OSError as error:
            parent = self.path.parent
            why = "that is a file" if parent.is_file() else error.strerror
            raise ConvertError(
                f"--out {self._out}: cannot make a folder in {parent} ({why}); choose another place"
            ) from error
        with (self.path / _LOCK).open("w") as file:
            if not lock(file):
                raise ConvertError(f"another process is writing {self.path}; wait for it")
            try:
                yield
            except FruitlessError:
                shutil.rmtree(self.path)
                raise
            finally:
                if self.folder.is_dir() and not self.begun() and not any(self.folder.iterdir()):
                    shutil.rmtree(self.path)  # no shard was begun, as after a refusal

    def known(self) -> dict[str, Any]:
        """What an earlier run wrote down of itself; empty without one."""
        try:
            values: dict[str, Any] = json.loads((self.path / _PLAN).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return values

    def begun(self) -> bool:
        """Whether an earlier run finished a shard."""
        return any(self.path.glob(f"*{_DONE}"))

    def write_down(self, values: dict[str, Any]) -> None:
        """Keep what a later run must agree with."""
        write_durably(self.path / _PLAN, json.dumps(values, indent=2).encode())

    def finished(self, name: str) -> Written | None:
        """A shard of an earlier run, if every byte of it is there."""
        path, note = self.folder / name, self.path / (name + _DONE)
        try:
            values = json.loads(note.read_text(encoding="utf-8"))
            written = Written(values["bytes"], values["sha256"], tuple(values["zeros"]))
            whole = path.stat().st_size == written.bytes and sha256_file(path) == written.sha256
        except (OSError, ValueError, KeyError):
            return None
        return written if whole else None

    def note(self, name: str, written: Written) -> None:
        """Remember a finished shard."""
        values = {"bytes": written.bytes, "sha256": written.sha256, "zeros": list(written.zeros)}
        write_durably(self.path / (name + _DONE), json.dumps(values).encode())

    def keep_only(self, names: Sequence[str]) -> None:
        """Delete what killed runs left, but for whole files of these names."""
        for path in self.folder.iterdir():
            if path.name not in names:
                path.unlink()

    def publish(self, out: Path) -> None:
        """Turn the folder into that of --out."""
        out = out.resolve()
        if out.is_dir():
            out.rmdir()  # empty, or this fails and nothing is lost
        put_folder(self.folder, out)
        shutil.rmtree(self.path)


def check_place(out: Path, *sources: Path | None) -> None:
    """Refuse an --out that would cost somebody else's files.

    Raises:
        ConvertError: it is a file, lies within a source or around it, or holds something else.
    """
    resolved = out.resolve()
    for source in sources:
        if source is None:
            continue
        owner = source.resolve()
        if resolved == owner or owner in resolved.parents:
            raise ConvertError(f"--out {out} is inside the source {source}; choose another place")
        if resolved in owner.parents:
            raise ConvertError(f"--out {out} holds the source {source}; choose another place")
    if out.exists() and not out.is_dir():
        raise ConvertError(f"--out {out} is a file; choose another place")
    if out.is_dir() and any(out.iterdir()) and not (out / RECORD).is_file():
        raise ConvertError(
            f"--out {out} is not empty and holds no conversion; choose another place"
        )


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
    """Size and time of each file: a quick sign that nothing was touched."""
    states = {name: path.stat() for name, path in files.items()}
    return {name: [state.st_size, state.st_mtime_ns] for name, state in states.items()}


def identify(
    files: Mapping[str, Path], known: Mapping[str, Any], advance: Callable[[int], None]
) -> Identity:
    """Size and SHA-256 of each file; those of an untouched file are taken from an earlier run.

    Args:
        files: from `named_files`.
        known: what an earlier run wrote down: `stamps` and `sources`.
        advance: called with how many more bytes are read.
    """
    now = stamps(files)
    before, digests = known.get("stamps", {}), known.get("sources", {})
    identity: Identity = {}
    for name, path in files.items():
        if before.get(name) == now[name] and name in digests:
            advance(now[name][0])
            identity[name] = digests[name]
        else:
            identity[name] = file_identity(path, advance)
    return identity


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
    changes = [
        f"{name} {_change(name, before, after)}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]
    more = f" and {len(changes) - _SHOWN} more" if len(changes) > _SHOWN else ""
    return ", ".join(changes[:_SHOWN]) + more


def _change(name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    if name not in before:
        return "is new"
    return "changed" if name in after else "is gone"
