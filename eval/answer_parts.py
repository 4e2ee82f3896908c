"""Several processes answer one manifest: a file each, joined by whoever finds all finished."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..pipeline.parts import Part
from ..teacher_cache.durable import write_durably
from .answer_log import identity_path, refuse_other
from .answers import Answer, AnswersError, parse_answers

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
