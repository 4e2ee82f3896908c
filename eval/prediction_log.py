"""Write predicted answers so that a killed run continues where it stopped, whole or in parts."""

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
from .predictions import Answer, AnswersError, listed, parse_answers, reason_of

_RECORDS: Final = 64
_BYTES: Final = 1 << 16

Reason = tuple[str, str]
"""(record id, why it has no answer)."""


@dataclass(frozen=True, slots=True)
class Joined:
    """State of the parts.

    Attributes:
        answers: in the whole file; None when a part is not finished.
        waiting: parts that are not finished, from 1.
        unreadable: records of all parts without an answer.
    """

    answers: int | None
    waiting: tuple[int, ...]
    unreadable: tuple[Reason, ...]


class AnswerLog:
    """Append answers to a predictions file, one whole line each.

    The identity of the model is kept beside the file, in `PREDICTIONS.jsonl.meta.json`; a run with
    another identity is refused, so one file never mixes two models. A line that a kill cut short
    is dropped when the file is opened again; its question is then answered again.

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
        """Start a predictions file, or continue one of the same identity.

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
            raise AnswersError(f"{path}: cannot be written: {reason_of(error)}") from None

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
            raise AnswersError(
                f"{self.path}: cannot be written: {reason_of(error)}; the answers so far are "
                "kept, run the same command again"
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
    """Return the path of a predictions file's identity."""
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


def part_path(out: Path, part: Part) -> Path:
    """Return the file of a part's answers: P.jsonl has P.part-1-of-4.jsonl and so on beside it."""
    return out.with_name(f"{out.stem}.part-{part.index}-of-{part.count}{out.suffix}")


def part_identity(identity: Mapping[str, Any], part: Part) -> dict[str, Any]:
    """Return the identity of a part's file."""
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
        match = pattern.fullmatch(file.name)
        if match is not None and int(match[1]) != count:
            raise AnswersError(
                f"{file}: is a part of {match[1]}, this is one of {count}; continue with "
                f"--part I/{match[1]}, remove the files of these parts, or choose another --out"
            )
    for index in range(1, count + 1):
        part = Part(index, count)
        refuse_other(part_path(out, part), part_identity(identity, part))


def begin_part(out: Path, part: Part) -> None:
    """Mark a part as not finished; it is about to be written."""
    _mark(part_path(out, part)).unlink(missing_ok=True)


def finish_part(out: Path, part: Part, unreadable: Sequence[Reason]) -> None:
    """Mark a part as finished: every record was answered, or is named as unreadable."""
    text = json.dumps({"unreadable": list(unreadable)}) + "\n"
    write_durably(_mark(part_path(out, part)), text.encode("ascii"))


def join_parts(out: Path, count: int, identity: Mapping[str, Any], order: Sequence[str]) -> Joined:
    """Write the whole file if all parts are finished.

    The file appears whole. Processes that join at once write equal bytes. The parts stay, so that
    each of them knows its answers when it is run again.

    Args:
        out: the whole file.
        count: parts.
        identity: of the whole file.
        order: record ids as the manifest has them.

    Raises:
        AnswersError: a part or the whole file belongs to another identity, or is damaged.
    """
    answers: dict[str, Answer] = {}
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
        whole = parse_answers(data[: data.rfind(b"\n") + 1], path)
        answers.update((answer.id, answer) for answer in whole)
    if waiting:
        return Joined(None, tuple(waiting), tuple(unreadable))
    refuse_other_parts(out, count, identity)
    _write_identity(out, identity)
    lines = [answers[record].to_line() for record in order if record in answers]
    write_durably(out, b"".join(lines))
    return Joined(len(lines), (), tuple(unreadable))


def image_digest(records: Sequence[Record], folder: Path) -> str:
    """Return a SHA-256 over the images of up to 64 records: name, size and first 64 KiB of each.

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


def _open_alone(path: Path) -> FileIO:
    """Open a file for appending; the lock goes with the process, however it ends."""
    file = path.open("ab", buffering=0)
    if lock(file):
        return file
    file.close()
    raise AnswersError(f"{path}: another process writes it; wait for it, or choose another --out")


def _claim(path: Path, identity: Mapping[str, Any]) -> None:
    """Write the identity of a new file, or compare it with the one that is there."""
    beside = identity_path(path)
    begun = path.exists() and path.stat().st_size > 0
    if begun and beside.exists():
        _compare(path, _read_identity(beside), identity)
    elif begun:
        raise AnswersError(
            f"{path}: holds answers but {beside.name} is missing, so the model that gave them is "
            "unknown; choose another --out or remove the file"
        )
    else:
        _write_identity(path, identity)


def _write_identity(path: Path, identity: Mapping[str, Any]) -> None:
    # Whole or absent: a kill in the middle must not leave an identity nobody can match.
    text = json.dumps(identity, indent=2, sort_keys=True) + "\n"
    write_durably(identity_path(path), text.encode("utf-8"))


def _read_identity(beside: Path) -> dict[str, Any]:
    try:
        identity = json.loads(beside.read_text(encoding="utf-8"))
    except ValueError:
        identity = None
    if not isinstance(identity, dict):
        raise AnswersError(
            f"{beside}: is no JSON object; choose another --out or remove both files"
        )
    return identity


def _compare(path: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    keys = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    if keys:
        changes = (f"{key} {old.get(key)!r} (now {new.get(key)!r})" for key in keys)
        raise AnswersError(
            f"{path}: was begun with another {listed(changes)}; choose another --out, or remove "
            f"the file and {identity_path(path).name}"
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
