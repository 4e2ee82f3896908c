"""Read pickles that hold plain data only: lists, tuples, dicts, strings, numbers and None.

A pickle is a program for a stack machine, and Python's own reader runs all of it: whoever wrote
the file may run any command. Two guards stand before that. `_Scan` walks over the opcodes without
running them: it refuses those that do more than make plain data, and bounds what the others cost.
`_PlainUnpickler` is Python's reader with every look-up of a name refused, so that there is nothing
to call, even where the scan is wrong.
"""

import codecs
import io
import pickle  # noqa: TID251 - PathVQA is published so; `_PlainUnpickler` looks no name up
import pickletools
from pathlib import Path
from typing import Any, Final, NoReturn

from ...runtime.files import naming
from ..manifest import shorten
from .definition import DataSetError

LARGEST_BYTES: Final = 16 * 2**20
"""A larger file is refused; PathVQA's have 3 MB."""
MOST_OPCODES: Final = 2**21
"""A longer program is refused: an opcode may make an object of 200 bytes; PathVQA has 400,000."""
LONGEST_NUMBER: Final = 128
"""Digits or bytes of a number; longer ones only serve to keep a reader busy."""

_PUT: Final = frozenset({"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"})
_GET: Final = frozenset({"GET", "BINGET", "LONG_BINGET"})
_NUMBERS: Final = frozenset({"INT", "LONG", "LONG1", "LONG4", "FLOAT"})
_KEYED: Final = frozenset({"DICT", "SETITEM", "SETITEMS"})
_PLAIN: Final = (
    _PUT | _GET | _NUMBERS | _KEYED | {"PROTO", "FRAME", "MARK", "POP", "POP_MARK", "DUP", "STOP"}
    | {"NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "BINFLOAT"}
    | {"STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE"}
    | {"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"}
    | {"EMPTY_LIST", "LIST", "APPEND", "APPENDS", "EMPTY_DICT"}
    | {"EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"}
)  # fmt: skip
_OPCODES: Final = {ord(opcode.code): opcode for opcode in pickletools.opcodes}
_TEXTS: Final = (pickletools.pyunicode, pickletools.pybytes_or_str)
_LENGTH_BYTES: Final = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}


class PickleRefusedError(DataSetError):
    """Say what a pickle holds besides plain data, or that it is broken."""


class _NotPlainError(Exception):
    """Say what a pickle does besides making plain data."""


def read_plain_pickle(path: Path) -> Any:
    """Return the lists, tuples, dicts, strings, numbers, booleans and None in a pickle.

    Strings of Python 2 are read as UTF-8, or as Latin-1 where they are none.

    Raises:
        PickleRefusedError: it holds anything else, is broken, or is too large.
        OSError: the file cannot be read.
    """
    with naming(path), path.open("rb") as file:
        data = file.read(LARGEST_BYTES + 1)
    if len(data) > LARGEST_BYTES:
        raise PickleRefusedError(f"{path}: is larger than {LARGEST_BYTES // 2**20} MiB; refused")
    try:
        _Scan(data).run()
        return _PlainUnpickler(data).load()
    except _NotPlainError as error:
        raise PickleRefusedError(
            f"{path}: {error}; a pickle of plain data holds only lists, dicts, strings and "
            "numbers, and nothing of this file was run; get it from the publisher"
        ) from None
    except Exception:  # Python's reader raises anything on broken files
        raise PickleRefusedError(f"{path}: is no whole pickle; download it again") from None


class _PlainUnpickler(pickle.Unpickler):
    """Python's reader without what it would look names up with."""

    def __init__(self, data: bytes) -> None:
        codecs.register_error("medalign.utf8_or_latin1", _utf8_or_latin1)
        super().__init__(io.BytesIO(data), encoding="ascii", errors="medalign.utf8_or_latin1")

    def find_class(self, module: str, name: str) -> NoReturn:
        """Refuse a function or class."""
        raise _NotPlainError(f"asks for {shorten(f'{module}.{name}')} by name")

    def persistent_load(self, pid: object) -> NoReturn:
        """Refuse an object that the file only refers to."""
        raise _NotPlainError(f"asks for {shorten(str(pid))} from outside the file")


def _utf8_or_latin1(error: UnicodeError) -> tuple[str, int]:
    """Decode a string of Python 2 from its first byte that is not ASCII."""
    assert isinstance(error, UnicodeDecodeError)
    end = error.object[error.start :]
    try:
        return end.decode("utf-8"), len(error.object)
    except UnicodeDecodeError:
        return end.decode("latin-1"), len(error.object)


class _Scan:
    """Follow a pickle without running it: of each value it knows only whether it is text."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0
        # One stack per open mark, as in Python's reader: popping to a mark takes the last one.
        self._stacks: list[list[bool]] = [[]]
        self._memo: dict[int, bool] = {}

    def run(self) -> None:
        """Check all opcodes up to the end, or up to a look-up, which the reader refuses by name.

        Raises:
            _NotPlainError: an opcode does more than make plain data, or is there to cost time.
            LookupError, ValueError: the pickle is broken.
        """
        for count in range(MOST_OPCODES):
            opcode = _OPCODES[self._take(1)[0]]
            name = opcode.name
            if name == "STOP" or self._looks_up(name):
                return
            if name not in _PLAIN:
                raise _NotPlainError(f"holds the instruction {name} (byte {self._position - 1})")
            argument = self._argument(opcode)
            if name in _NUMBERS and len(argument) > LONGEST_NUMBER:
                raise ValueError("too long a number")
            if name in _PUT or name in _GET:
                self._remember(name, argument, count)
            else:
                self._follow(opcode)
        raise _NotPlainError(f"holds more than {MOST_OPCODES} instructions")

    def _looks_up(self, name: str) -> bool:
        named_on_stack = name == "STACK_GLOBAL" and self._stacks[-1][-2:] == [True, True]
        return named_on_stack or name in ("GLOBAL", "INST")

    def _take(self, count: int) -> bytes:
        start, self._position = self._position, self._position + count
        if not start <= self._position <= len(self._data):
            raise ValueError("cut short")
        return self._data[start : self._position]

    def _argument(self, opcode: pickletools.OpcodeInfo) -> bytes:
        size = opcode.arg.n if opcode.arg else 0
        if size == pickletools.UP_TO_NEWLINE:
            return self._take(self._data.index(b"\n", self._position) + 1 - self._position)
        if size in _LENGTH_BYTES:
            size = int.from_bytes(self._take(_LENGTH_BYTES[size]), "little")
        return self._take(size)

    def _remember(self, name: str, argument: bytes, count: int) -> None:
        stack = self._stacks[-1]
        if name == "MEMOIZE":
            index = len(self._memo)
        else:
            index = int(argument) if name in ("GET", "PUT") else int.from_bytes(argument, "little")
        if name in _GET:
            stack.append(self._memo[index])
        # Python's reader makes room for the number, whatever it is. A pickler counts from 0 or 1.
        elif 0 <= index <= count:
            self._memo[index] = stack[-1]
        else:
            raise ValueError("a number out of order")

    def _follow(self, opcode: pickletools.OpcodeInfo) -> None:
        """Take from the stack, and put on it, what the opcode does."""
        if opcode.name == "MARK":
            self._stacks.append([])
            return
        items, count = [], len(opcode.stack_before)
        if pickletools.stackslice in opcode.stack_before:
            items, count = self._stacks.pop(), count - 2  # the mark and what is above it
        stack = self._stacks[-1]
        if count > len(stack):
            raise ValueError("nothing on the stack")
        operands = stack[len(stack) - count :]
        del stack[len(stack) - count :]
        # Numbers may be chosen to have one hash; a tuple's goes through all that it holds, in C.
        if opcode.name in _KEYED and not all((items or operands[1:])[::2]):
            raise _NotPlainError("holds a dict whose keys are not all strings")
        stack.extend(kind in _TEXTS for kind in opcode.stack_after)
