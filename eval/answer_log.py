"""Write predicted answers so that a killed run goes on where it stopped."""

import fcntl
import json
import os
import time
from collections.abc import Mapping
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ..teacher_cache.durable import write_durably
from .answers import SHOWN, Answer, AnswersError, parse_answers


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
        size = self._file.tell()
        try:
            self._write(answer.to_line())
            if time.monotonic() - self._synced >= self._sync_seconds:
                self._sync()
        except OSError as error:
            # A half line here would spoil the next one, if the caller goes on.
            os.truncate(self.path, size)
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

    def _write(self, line: bytes) -> None:
        rest = memoryview(line)
        while rest:  # an unbuffered write may take only a part, on a disk that fills up
            rest = rest[self._file.write(rest) :]

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
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise AnswersError(
            f"{path}: another process writes it; wait for it, or choose another --out"
        ) from None
    except OSError:  # a file system without locks: as before there were any
        return file
    return file


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
