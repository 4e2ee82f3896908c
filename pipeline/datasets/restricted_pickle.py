"""Read pickles that hold plain data only, with a reader that cannot do anything else.

A pickle is a program for a stack machine, and Python's own reader runs all of it: whoever wrote
the file may run any command. This reader knows the instructions that make lists, tuples, dicts,
strings, numbers, True, False and None. Any other one, and with it every name of a function or
class, ends the reading before anything was called; there is no code here that could call it.
"""

import struct
from pathlib import Path
from typing import Any, Final

from .dataset import DataSetError
from .outputs import naming
from .plain_machine import PlainMachine, RefusedInstructionError

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
