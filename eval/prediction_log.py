"""Write predicted answers so that a killed run goes on where it stopped."""

import hashlib
import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from ..pipeline.manifest import Record
from ..runtime.files import append, lock, write_durably
from ..runtime.parts import Part
from .predictions import SHOWN, Answer, AnswersError, parse_answers


class AnswerLog:
    """Append answers to a predictions file, one whole line each.

    Who answered is kept beside the file, in `PREDICTIONS.jsonl.meta.json`; a run with another
    identity is refused, so one file never mixes two models. A line that a kill cut short is
    dropped when the file is opened again; its question is then answered again.

    Attributes:
        path: the predictions file.
        done: ids that have an answer in the file, those of earlier runs included.
    """

    def __init__(self, path: Path, file: FileIO, done: set[str], sync_seconds: float) -> None:
        self.path = path
        self.done = done
        self._file = file
        self._sync_seconds = sync_seconds
        self._synced = time.monotonic()

    @classmethod
    def open(cls, path: Path, identity: Mapping[str, Any], *, sync_seconds: float = 5.0) -> Self:
        """Start a predictions file, or go on with one of the same identity.

        Args:
            path: the predictions file; missing folders are made.
            identity: what decides the answers, as JSON values: model, adapter, decoder, seed,
                digest of the manifest, ...
            sync_seconds: answers of at most this many seconds are lost if the machine dies. The
                death of the process alone loses none that `append` returned from.

        Raises:
            AnswersError: the file belongs to another identity, was not written by this class, or
                holds a damaged line; another process writes it; or it cannot be written.
        """
        identity = json.loads(json.dumps(identity))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir():
                raise AnswersError(f"{path}: is a folder, answers need a file")
            file = _open_alone(path)
            try:
                _claim(path, identity)
                return cls(path, file, _recover(path), sync_seconds)
            except BaseException:
                file.close()
                raise
        except OSError as error:
            reason = (error.strerror or "error").lower()
            raise AnswersError(f"{path}: cannot be written: {reason}") from None

    def append(self, answer: Answer) -> None:
        """Write one answer; it survives the death of the process once this returns.

        Raises:
            AnswersError: the id has an answer already, or the file cannot be written.
        """
        if answer.id in self.done:
            raise AnswersError(f"{self.path}: id {answer.id!r} is answered already; skip it")
        try:
            append(self.path, answer.to_line())
            if time.monotonic() - self._synced >= self._sync_seconds:
                self._sync()
        except OSError as error:
            reason = (error.strerror or "error").lower()
            raise AnswersError(
                f"{self.path}: cannot be written: {reason}; the answers so far are kept, "
                "run the same command again"
            ) from None
        self.done.add(answer.id)

    def close(self) -> None:
        """Make every answer durable and close the file."""
        if not self._file.closed:
            self._sync()
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _sync(self) -> None:
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()


def identity_path(path: Path) -> Path:
    """Return where the identity of a predictions file is kept."""
    return path.with_name(f"{path.name}.meta.json")


def refuse_other(path: Path, identity: Mapping[str, Any]) -> None:
    """Refuse a predictions file that another identity began; leave it alone otherwise.

    Raises:
        AnswersError: names what differs.
    """
    if path.is_dir():
        raise AnswersError(f"{path}: is a folder, answers need a file")
    if path.exists() and path.stat().st_size > 0:
        _claim(path, json.loads(json.dumps(identity)))


def _open_alone(path: Path) -> FileIO:
    """Open a file for appending; the lock goes with the process, however it ends."""
    file = path.open("ab", buffering=0)
    if lock(file):
        return file
    file.close()
    raise AnswersError(f"{path}: another process writes it; wait for it, or choose another --out")


def _claim(path: Path, identity: Mapping[str, Any]) -> None:
    """Write the identity of a new file, or compare it with the one that is there."""
    side = identity_path(path)
    begun = path.exists() and path.stat().st_size > 0
    if begun and side.exists():
        _compare(path, _read_identity(side), identity)
    elif begun:
        raise AnswersError(
            f"{path}: holds answers but {side.name} is missing, so who gave them is unknown; "
            "choose another --out or remove the file"
        )
    else:
        # Whole or absent: a kill in the middle must not leave an identity nobody can match.
        text = json.dumps(identity, indent=2, sort_keys=True) + "\n"
        write_durably(side, text.encode("utf-8"))


def _read_identity(side: Path) -> dict[str, Any]:
    try:
        value = json.loads(side.read_text(encoding="utf-8"))
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise AnswersError(f"{side}: is no JSON object; choose another --out or remove both files")
    return value


def _compare(path: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    keys = [key for key in sorted({*there, *here}) if there.get(key) != here.get(key)]
    if keys:
        shown = ", ".join(
            f"{key} {there.get(key)!r} (now {here.get(key)!r})" for key in keys[:SHOWN]
        )
        raise AnswersError(
            f"{path}: was begun with another {shown}; choose another --out, or remove the file "
            f"and {identity_path(path).name}"
        )


def _recover(path: Path) -> set[str]:
    """Drop a line that was cut short; return the ids that have a whole one."""
    if not path.exists():
        return set()
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    done = {answer.id for answer in parse_answers(data[:whole], path)}
    if whole < len(data):
        os.truncate(path, whole)
    return done


Reason = tuple[str, str]
"""(record id, why it has no answer)."""


@dataclass(frozen=True, slots=True)
class Joined:
    """What became of the parts.

    Attributes:
        answers: in the whole file; None when a part is not finished.
        waiting: parts that are not finished, from 1.
        unreadable: records of all parts without an answer.
    """

    answers: int | None
    waiting: tuple[int, ...]
    unreadable: tuple[Reason, ...]


def part_path(out: Path, part: Part) -> Path:
    """Where a part's answers stand: P.jsonl has P.part-1-of-4.jsonl and so on beside it."""
    return out.with_name(f"{out.stem}.part-{part.index}-of-{part.count}{out.suffix}")


def part_identity(identity: Mapping[str, Any], part: Part) -> dict[str, Any]:
    """The identity of a part's file."""
    return {**identity, "part": str(part)}


def refuse_other_parts(out: Path, count: int, identity: Mapping[str, Any]) -> None:
    """Refuse to share the work with parts, or a whole file, that another identity began.

    Parts of another division are refused too: they would never be joined with these.

    Raises:
        AnswersError: names the file and what differs.
    """
    refuse_other(out, identity)
    name = re.escape(out.stem), re.escape(out.suffix)
    pattern = re.compile(r"{}\.part-\d+-of-(\d+){}".format(*name))
    for file in sorted(out.parent.iterdir()) if out.parent.is_dir() else ():
        found = pattern.fullmatch(file.name)
        if found is not None and int(found[1]) != count:
            raise AnswersError(
                f"{file}: is a part of {found[1]}, this is one of {count}; go on with "
                f"--part I/{found[1]}, remove the files of these parts, or choose another --out"
            )
    for index in range(1, count + 1):
        part = Part(index, count)
        refuse_other(part_path(out, part), part_identity(identity, part))


def begin_part(out: Path, part: Part) -> None:
    """Take back that a part is finished; it is about to be written."""
    _mark(part_path(out, part)).unlink(missing_ok=True)


def finish_part(out: Path, part: Part, unreadable: Sequence[Reason]) -> None:
    """Say that every record of a part was asked."""
    text = json.dumps({"unreadable": list(unreadable)}) + "\n"
    write_durably(_mark(part_path(out, part)), text.encode("ascii"))


def join_parts(out: Path, count: int, identity: Mapping[str, Any], order: Sequence[str]) -> Joined:
    """Write the whole file if all parts are finished; whoever comes last does, or several do.

    The file appears whole. Processes that join at once write equal bytes. The parts stay, so that
    each of them knows what it has done when it is run again.

    Args:
        out: the whole file.
        count: parts.
        identity: of the whole file.
        order: record ids as the manifest has them.

    Raises:
        AnswersError: a part or the whole file belongs to another identity, or is damaged.
    """
    found: dict[str, Answer] = {}
    waiting: list[int] = []
    unreadable: list[Reason] = []
    for index in range(1, count + 1):
        part = Part(index, count)
        path = part_path(out, part)
        marked = _read_mark(path)
        if marked is None:
            waiting.append(index)
            continue
        unreadable += marked
        data = path.read_bytes() if path.exists() else b""
        # A part that was begun again may be in the middle of a line.
        answers = parse_answers(data[: data.rfind(b"\n") + 1], path)
        found.update((answer.id, answer) for answer in answers)
    if waiting:
        return Joined(None, tuple(waiting), tuple(unreadable))
    refuse_other_parts(out, count, identity)
    text = json.dumps(identity, indent=2, sort_keys=True) + "\n"
    write_durably(identity_path(out), text.encode("utf-8"))
    lines = [found[record].to_line() for record in order if record in found]
    write_durably(out, b"".join(lines))
    return Joined(len(lines), (), tuple(unreadable))


def _mark(path: Path) -> Path:
    return path.with_name(f"{path.name}.done.json")


def _read_mark(path: Path) -> list[Reason] | None:
    mark = _mark(path)
    try:
        value = json.loads(mark.read_text(encoding="ascii"))
        return [(str(record), str(reason)) for record, reason in value["unreadable"]]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        raise AnswersError(f"{mark}: is damaged; remove it and run its part again") from None


_RECORDS: Final = 64
_BYTES: Final = 1 << 16


def image_digest(records: Sequence[Record], folder: Path) -> str:
    """SHA-256 of what a manifest's images are: of up to 64 records, name, size and first 64 KiB.

    The records are spread evenly over the manifest, so a folder of other versions (resized,
    windowed, anonymised) differs, while a copy of the folder does not. An image that is not there
    counts as empty.
    """
    digest = hashlib.sha256()
    for record in records[:: -(-len(records) // _RECORDS) or 1]:
        for image in record.images:
            try:
                with (folder / image).open("rb") as file:
                    data = file.read(_BYTES)
                    size = file.seek(0, os.SEEK_END)
            except OSError:
                size, data = 0, b""
            digest.update(f"{image} {size}\n".encode())
            digest.update(data)
    return digest.hexdigest()
