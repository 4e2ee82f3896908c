"""Records in compact form: the text of all of them in one piece of memory."""

import json
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

import numpy as np

from ..pipeline.manifest import Record, Turn


class PackedRecords(Sequence[Record]):
    """Records as JSON, one after the other, made into objects when they are asked for.

    As objects, records take five to ten times the manifest's size, and a forked worker copies
    them all bit by bit, because counting a reference writes beside the object. Packed they take
    the manifest's size, forked workers share it, and a spawned one receives it as one block.
    """

    def __init__(self, records: Iterable[Record]) -> None:
        text, ends = bytearray(), array("q", [0])
        for record in records:
            text += _packed(record)
            ends.append(len(text))
        self._text = bytes(text)
        self._ends = np.frombuffer(ends, np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __iter__(self) -> Iterator[Record]:
        return (self._at(index) for index in range(len(self)))

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | Sequence[Record]:
        if isinstance(index, slice):
            return [self._at(k) for k in range(*index.indices(len(self)))]
        return self._at(range(len(self))[index])

    @property
    def nbytes(self) -> int:
        """Memory that the records take."""
        return len(self._text) + self._ends.nbytes

    def _at(self, index: int) -> Record:
        begin, end = self._ends[index : index + 2].tolist()
        identity, images, turns, answer_type, fields, line = json.loads(self._text[begin:end])
        return Record(
            id=identity,
            images=tuple(images),
            # A manifest's turns alternate, a human begins.
            conversations=tuple(
                Turn("gpt" if k % 2 else "human", text) for k, text in enumerate(turns)
            ),
            answer_type=answer_type,
            fields=fields,
            line=line,
        )


def _packed(record: Record) -> bytes:
    turns = [turn.text for turn in record.conversations]
    parts: list[Any] = [record.id, record.images, turns, record.answer_type]
    text = json.dumps([*parts, dict(record.fields), record.line], ensure_ascii=False)
    # Other fields of a record may hold half a character.
    return text.encode("utf-8", "surrogatepass")
