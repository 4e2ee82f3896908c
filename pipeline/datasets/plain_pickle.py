"""Read pickles that hold plain data only, with a reader that cannot do anything else.

A pickle is a program for a stack machine, and Python's own reader runs all of it: whoever wrote
the file may run any command. This reader knows the instructions that make lists, tuples, dicts,
strings, numbers, True, False and None. Any other one, and with it every name of a function or
class, ends the reading before anything was called; there is no code here that could call it.
"""

import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NoReturn

from ...runtime.files import naming
from .definition import DataSetError

LONGEST_NUMBER: Final = 128
"""Digits or bytes of a whole number; longer ones only serve to keep a reader busy."""

_MARK: Final = object()

_REFUSED: Final = {
    ord("c"): "c (GLOBAL)",
    0x93: "STACK_GLOBAL",
    ord("i"): "i (INST)",
    ord("o"): "o (OBJ)",
    0x81: "NEWOBJ",
    0x92: "NEWOBJ_EX",
    ord("R"): "R (REDUCE)",
    ord("b"): "b (BUILD)",
    0x82: "EXT1",
    0x83: "EXT2",
    0x84: "EXT4",
    ord("P"): "P (PERSID)",
    ord("Q"): "Q (BINPERSID)",
    ord("B"): "B (BINBYTES)",
    ord("C"): "C (SHORT_BINBYTES)",
    0x8E: "BINBYTES8",
    0x96: "BYTEARRAY8",
    0x97: "NEXT_BUFFER",
    0x98: "READONLY_BUFFER",
    0x8F: "EMPTY_SET",
    0x90: "ADDITEMS",
    0x91: "FROZENSET",
}
_NAMED_ON_LINES: Final = (ord("c"), ord("i"))
_NAMED_ON_STACK: Final = 0x93


class RefusedInstructionError(Exception):
    """Say which instruction would do more than make plain data, and what it asks for."""


class PlainMachine:
    """The stack, the memo and the place in the file."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self.at = 0

    def run(self) -> Any:
        """Follow the instructions to the end, and return what is on top of the stack."""
        while True:
            self.at = self._at
            code = self.take(1)[0]
            if code == ord("."):
                return self.pop()
            if code not in _INSTRUCTIONS:
                self._refuse(code)
            _INSTRUCTIONS[code](self)

    def _refuse(self, code: int) -> NoReturn:
        if code not in _REFUSED:
            raise ValueError("no instruction")
        name = ""
        if code in _NAMED_ON_LINES:
            name = ".".join(_printable(self.line()) for _ in range(2))
        elif code == _NAMED_ON_STACK:
            name = ".".join(_printable(each) for each in self._stack[-2:] if type(each) is str)
        asks = f"asks for {name}" if name else f"holds the instruction {_REFUSED[code]}"
        raise RefusedInstructionError(f"{asks} (byte {self.at})")

    def take(self, count: int) -> bytes:
        """Return the next bytes of the file."""
        end = self._at + count
        if count < 0 or end > len(self._data):
            raise ValueError("cut short")
        taken, self._at = self._data[self._at : end], end
        return taken

    def number(self, size: int, *, signed: bool = False) -> int:
        """Return a whole number of `size` bytes."""
        return int.from_bytes(self.take(size), "little", signed=signed)

    def line(self) -> str:
        """Return what stands before the next line feed."""
        end = self._data.index(b"\n", self._at)
        line, self._at = self._data[self._at : end], end + 1
        return line.decode("latin-1")

    def pop(self) -> Any:
        """Return the last value."""
        if self._stack[-1] is _MARK:
            raise ValueError("nothing above the mark")
        return self._stack.pop()

    def pop_to_mark(self) -> list[Any]:
        """Return the values above the last mark, and take the mark away."""
        place = len(self._stack) - 1
        while self._stack[place] is not _MARK:
            place -= 1
            if place < 0:
                raise ValueError("no mark")
        items = self._stack[place + 1 :]
        del self._stack[place:]
        return items

    def push(self, value: Any) -> None:
        """Put a value on the stack."""
        self._stack.append(value)

    def tuple_of(self, count: int) -> None:
        """Make a tuple of the last values."""
        self.push(tuple([self.pop() for _ in range(count)][::-1]))

    def append(self, items: list[Any]) -> None:
        """Add values to the list below them."""
        target = self._stack[-1]
        if type(target) is not list:
            raise TypeError("no list")
        target.extend(items)

    def set_items(self, items: list[Any]) -> None:
        """Add keys and values to the dict below them."""
        target = self._stack[-1]
        if type(target) is not dict:
            raise TypeError("no dict")
        target.update(_pairs(items))

    def decimal(self, *, long: bool) -> None:
        """Read a whole number in digits; 00 and 01 are False and True."""
        line = self.line()
        if line in ("00", "01") and not long:
            self.push(line == "01")
            return
        if len(line) > LONGEST_NUMBER:
            raise ValueError("too long a number")
        self.push(int(line.removesuffix("L") if long else line))

    def binary_long(self, size: int) -> None:
        """Read a whole number of any length in bytes."""
        count = self.number(size)
        if count > LONGEST_NUMBER:
            raise ValueError("too long a number")
        self.push(self.number(count, signed=True))

    def text(self, size: int, *, python_2: bool = False) -> None:
        """Read a string with its length before it."""
        data = self.take(self.number(size))
        self.push(_python_2_text(data) if python_2 else data.decode("utf-8", "surrogatepass"))

    def quoted(self) -> None:
        """Read a string of Python 2 in quotes, with backslashes."""
        line = self.line().strip()
        if len(line) < 2 or line[0] != line[-1] or line[0] not in "'\"":
            raise ValueError("no quotes")
        escaped = line[1:-1].encode("latin-1")
        # Of \x41, \n, \\ and the like; octal and \u do not occur in these.
        self.push(_python_2_text(escaped.decode("unicode_escape").encode("latin-1")))

    def remember(self, name: int) -> None:
        """Keep the last value under a number."""
        self._memo[name] = self._stack[-1]

    def remember_next(self) -> None:
        """Keep the last value under the next number."""
        self.remember(len(self._memo))

    def recall(self, name: int) -> None:
        """Put a kept value on the stack."""
        self.push(self._memo[name])

    def repeat(self) -> None:
        """Put the last value on the stack once more."""
        self.push(self._stack[-1])


def _python_2_text(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _pairs(items: list[Any]) -> dict[Any, Any]:
    keys, values = items[::2], items[1::2]
    # Numbers may be chosen to have one hash; a tuple's goes through all that it holds, in C.
    if not all(type(key) is str for key in keys):
        raise RefusedInstructionError("holds a dict whose keys are not all strings")
    return dict(zip(keys, values, strict=True))


def _printable(name: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in name[:60])


_INSTRUCTIONS: Final[Mapping[int, Callable[[PlainMachine], object]]] = {
    0x80: lambda m: m.take(1),  # PROTO: which version; all of them are known
    0x95: lambda m: m.take(8),  # FRAME: how long the next piece is
    ord("("): lambda m: m.push(_MARK),
    ord("0"): lambda m: m.pop(),
    ord("1"): lambda m: m.pop_to_mark(),
    ord("2"): lambda m: m.repeat(),
    ord("N"): lambda m: m.push(None),
    0x88: lambda m: m.push(True),
    0x89: lambda m: m.push(False),
    ord("I"): lambda m: m.decimal(long=False),
    ord("L"): lambda m: m.decimal(long=True),
    ord("J"): lambda m: m.push(m.number(4, signed=True)),
    ord("K"): lambda m: m.push(m.number(1)),
    ord("M"): lambda m: m.push(m.number(2)),
    0x8A: lambda m: m.binary_long(1),
    0x8B: lambda m: m.binary_long(4),
    ord("F"): lambda m: m.push(float(m.line())),
    ord("G"): lambda m: m.push(struct.unpack(">d", m.take(8))[0]),
    ord("S"): lambda m: m.quoted(),
    ord("T"): lambda m: m.text(4, python_2=True),
    ord("U"): lambda m: m.text(1, python_2=True),
    ord("V"): lambda m: m.push(m.line().encode("latin-1").decode("raw-unicode-escape")),
    0x8C: lambda m: m.text(1),
    ord("X"): lambda m: m.text(4),
    0x8D: lambda m: m.text(8),
    ord("]"): lambda m: m.push([]),
    ord("l"): lambda m: m.push(m.pop_to_mark()),
    ord("a"): lambda m: m.append([m.pop()]),
    ord("e"): lambda m: m.append(m.pop_to_mark()),
    ord("}"): lambda m: m.push({}),
    ord("d"): lambda m: m.push(_pairs(m.pop_to_mark())),
    ord("s"): lambda m: m.set_items([m.pop(), m.pop()][::-1]),
    ord("u"): lambda m: m.set_items(m.pop_to_mark()),
    ord(")"): lambda m: m.push(()),
    ord("t"): lambda m: m.push(tuple(m.pop_to_mark())),
    0x85: lambda m: m.tuple_of(1),
    0x86: lambda m: m.tuple_of(2),
    0x87: lambda m: m.tuple_of(3),
    ord("p"): lambda m: m.remember(int(m.line())),
    ord("q"): lambda m: m.remember(m.number(1)),
    ord("r"): lambda m: m.remember(m.number(4)),
    0x94: lambda m: m.remember_next(),
    ord("g"): lambda m: m.recall(int(m.line())),
    ord("h"): lambda m: m.recall(m.number(1)),
    ord("j"): lambda m: m.recall(m.number(4)),
}


LARGEST_BYTES: Final = 16 * 2**20
"""A larger file is refused: one byte can make an object of a hundred, and PathVQA's have 3 MB."""


class PickleRefusedError(DataSetError):
    """Say what a pickle holds besides plain data, or where it is broken."""


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
    machine = PlainMachine(data)
    try:
        return machine.run()
    except RefusedInstructionError as error:
        raise PickleRefusedError(
            f"{path}: {error}; a pickle of plain data holds only lists, dicts, strings and "
            "numbers, and nothing of this file was run; get it from the publisher"
        ) from None
    except (IndexError, KeyError, TypeError, ValueError, struct.error, OverflowError):
        raise PickleRefusedError(
            f"{path}: is no whole pickle (broken at byte {machine.at}); download it again"
        ) from None
