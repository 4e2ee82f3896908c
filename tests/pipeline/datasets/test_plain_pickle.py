import contextlib
import pickle  # noqa: TID251 - makes what the reader must read, and what it must refuse
import struct
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medalign.pipeline.datasets import plain_pickle
from medalign.pipeline.datasets.plain_pickle import PickleRefusedError, read_plain_pickle

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**100), 2**100)
    | st.floats(allow_nan=False)
    | st.text()
)
PLAIN = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.text(), inner) | st.lists(inner, max_size=4).map(tuple)
    ),
)


class Runs:
    """Runs a command when Python's own reader meets it."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        import os

        return os.system, (f"touch {self.marker}",)


class Plain:
    def __init__(self) -> None:
        self.x = 1


def read(data: bytes, folder: Path) -> Any:
    path = folder / "train_qa.pkl"
    path.write_bytes(data)
    return read_plain_pickle(path)


@given(value=PLAIN, protocol=st.integers(0, 5))
def test_plain_data_is_read_as_python_reads_it(
    tmp_path_factory: pytest.TempPathFactory, value: Any, protocol: int
) -> None:
    data = pickle.dumps(value, protocol)
    found = read(data, tmp_path_factory.getbasetemp())
    assert found == value
    assert repr(found) == repr(value)  # 1 == True == 1.0


def test_keys_that_are_no_strings_are_refused(tmp_path: Path) -> None:
    # Numbers of one hash would make a dict of them take hours.
    for keys in ({k * sys.hash_info.modulus: "" for k in range(3)}, {("a",): ""}, {None: ""}):
        with pytest.raises(PickleRefusedError, match="a dict whose keys are not all strings"):
            read(pickle.dumps(keys), tmp_path)


def test_a_list_that_is_there_twice_is_read_twice(tmp_path: Path) -> None:
    same = ["a"]
    assert read(pickle.dumps([same, same]), tmp_path) == [["a"], ["a"]]


def test_strings_of_python_2_are_read(tmp_path: Path) -> None:
    utf8 = "é".encode()
    in_binary = b"\x80\x02]q\x00(U\x03yesU" + bytes([len(utf8)]) + utf8 + b"U\x01\xe9e."
    assert read(in_binary, tmp_path) == ["yes", "é", "é"]
    in_text = b"(lp0\nS'it\\'s'\np1\naS\"a\\x41\\n\"\naS'\\xc3\\xa9'\naI01\naL7L\na."
    assert read(in_text, tmp_path) == ["it's", "aA\n", "é", True, 7]
    long_one = b"T" + struct.pack("<i", 3) + b"abc."
    assert read(long_one, tmp_path) == "abc"


def attacks(marker: Path) -> dict[str, tuple[bytes, str]]:
    """Pickles that make `marker` if Python's own reader reads them, and what they ask for."""
    command = f"touch {marker}".encode()
    quoted = b"S'" + command + b"'\n"
    reduced = [pickle.dumps(Runs(marker), protocol) for protocol in (0, 2, 4, 5)]
    return {
        "REDUCE, text": (reduced[0], "posix.system"),
        "REDUCE, binary": (reduced[1], "posix.system"),
        "STACK_GLOBAL": (reduced[2], "posix.system"),
        "STACK_GLOBAL, protocol 5": (reduced[3], "posix.system"),
        "INST": (b"(" + quoted + b"ios\nsystem\n.", "os.system"),
        "OBJ": (b"(cos\nsystem\n" + quoted + b"o.", "os.system"),
        "NEWOBJ after a name": (b"\x80\x02cos\nsystem\n" + quoted + b"\x85R.", "os.system"),
        "after good data": (
            b"\x80\x02]q\x00(}(U\x05imageU\x07train_0u" + reduced[1][2:-1] + b"e.",
            "posix.system",
        ),
    }


@pytest.mark.parametrize("kind", attacks(Path("m")))
def test_nothing_that_a_pickle_asks_for_is_run(tmp_path: Path, kind: str) -> None:
    marker = tmp_path / "ran"
    data, name = attacks(marker)[kind]
    with pytest.raises(PickleRefusedError, match=f"train_qa.pkl: asks for {name} ") as refused:
        read(data, tmp_path)
    assert "nothing of this file was run" in str(refused.value)
    assert not marker.exists()
    pickle.loads(data)  # the attack is a real one
    assert marker.exists()


REFUSED = {
    "a class": (pickle.dumps(Plain(), 2), "asks for copy_reg._reconstructor|asks for .*Plain"),
    "a function": (pickle.dumps(print, 2), "asks for __builtin__.print"),
    "an ordered dict": (pickle.dumps(OrderedDict(a=1)), "asks for collections.OrderedDict"),
    "a set": (pickle.dumps({1}, 4), "EMPTY_SET"),
    "a frozen set": (pickle.dumps(frozenset([1]), 4), "FROZENSET"),
    "bytes": (pickle.dumps(b"a", 4), "BINBYTES"),
    "bytes of protocol 2": (pickle.dumps(b"a", 2), "_codecs.encode"),
    "a bytearray": (pickle.dumps(bytearray(b"a"), 5), "BYTEARRAY8"),
    "EXT1": (b"\x80\x02\x82\x01.", "EXT1"),
    "EXT2": (b"\x80\x02\x83\x01\x00.", "EXT2"),
    "EXT4": (b"\x80\x02\x84\x01\x00\x00\x00.", "EXT4"),
    "PERSID": (b"Psome name\n.", "PERSID"),
    "BINPERSID": (b"U\x01aQ.", "BINPERSID"),
    "BUILD": (b"]}b.", "BUILD"),
    "NEWOBJ": (b"])\x81.", "NEWOBJ"),
    "NEWOBJ_EX": (b"])}\x92.", "NEWOBJ_EX"),
    "NEXT_BUFFER": (b"\x97.", "NEXT_BUFFER"),
    "a name made of no strings": (b"]]\x93.", "STACK_GLOBAL"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_plain_data_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    data, name = REFUSED[kind]
    with pytest.raises(PickleRefusedError, match=name):
        read(data, tmp_path)


BROKEN = {
    "nothing": b"",
    "no end": b"]",
    "no JSON": b'[{"image": "a"}]',
    "cut short": pickle.dumps([{"image": "train_0000"}])[:-4],
    "length past the end": b"X\xff\xff\xff\x7fabc.",
    "length of eight bytes": b"\x8d\xff\xff\xff\xff\xff\xff\xff\xffabc.",
    "negative length": b"T\xff\xff\xff\xffabc.",
    "no mark": b"]e.",
    "pop of nothing": b"0.",
    "append to a dict": b"}]a.",
    "items of a list": b"](NNu.",
    "key without value": b"}(Nu.",
    "unhashable key": b"(]Nd.",
    "key that hashes deep": b"(" + b")" + b"\x85" * 1000 + b"Nd.",
    "unknown name": b"h\x07.",
    "half a character": b"U\x01a" + b"X\x01\x00\x00\x00\xff.",
    "no quotes": b"Sabc\n.",
    "a number of a million digits": b"I" + b"9" * 10**6 + b"\n.",
    "a number of a million bytes": b"\x8b" + struct.pack("<i", 10**6) + b"\x7f" * 10**6 + b".",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_pickle_is_an_error_that_names_the_file(tmp_path: Path, kind: str) -> None:
    with pytest.raises(
        PickleRefusedError, match=r"train_qa.pkl: (is no whole pickle|holds a dict whose)"
    ):
        read(BROKEN[kind], tmp_path)


def test_a_pickle_that_is_too_large_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plain_pickle, "LARGEST_BYTES", 2**20)
    with pytest.raises(PickleRefusedError, match="larger than 1 MiB"):
        read(b"]" * (2**20 + 1), tmp_path)


@given(data=st.binary(max_size=60))
def test_any_bytes_end_in_data_or_in_our_own_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    with contextlib.suppress(PickleRefusedError):
        read(data, tmp_path_factory.getbasetemp())


def test_deeply_nested_data_is_read_without_recursion(tmp_path: Path) -> None:
    found = read(b"]" * 100_000 + b"a" * 99_999 + b".", tmp_path)
    depth = 1
    while found:
        found = found[0]
        depth += 1
    assert depth == 100_000


LAUGHS = b"".join(b"](" + 10 * bytes([*b"h", n]) + b"eq" + bytes([n + 1]) for n in range(99))
"""Ninety-nine lists, each holding the one before ten times: 10 to the 99th if it were copied."""

HOSTILE = {
    "lists of lists as keys": b"]q\0" + LAUGHS + b"}(hcNu.",
    "tuples of tuples as keys": b")q\0" + b"h\0h\0\x86q\0" * 64 + b"}(h\0Nu.",
    "deep tuples as keys": b"}" + b")" + b"\x85" * 10**5 + b"Ns.",
    "a memo of 64 GB": b"]r\xff\xff\xff\xff.",
    "a memo of 64 GB, text": b"]p4294967295\n.",
    "a string of 2 GB": b"T\xff\xff\xff\x7f.",
    "a string of 16 EB": b"\x8d" + b"\xff" * 8 + b".",
    "a frame of 16 EB": b"\x80\x04\x95" + b"\xff" * 8 + b"].",
    "bytes of 16 EB": b"\x8e" + b"\xff" * 8 + b".",
    "a number of 2 GB": b"\x8b\xff\xff\xff\x7f.",
    "a fraction of many digits": b"F0." + b"9" * 10**6 + b"\n.",
    "many marks": b"(" * 10**5,
    "more marks than are open": b"]eeee.",
    "a persistent name of many letters": b"P" + b"a" * 10**6 + b"\n.",
    "a name of many letters": b"c" + b"a" * 10**6 + b"\nb\n.",
    "an object of no class": b"(]o.",
    "state for a list": b"]}b.",
    "a list that is called": b"])R.",
}


def test_hostile_pickles_end_in_our_error_within_a_second_and_little_memory(
    tmp_path: Path,
) -> None:
    for number, data in enumerate(HOSTILE.values()):
        (tmp_path / f"{number:02}.pkl").write_bytes(data)
    code = """
import resource, sys, time
from pathlib import Path
from medalign.pipeline.datasets.plain_pickle import PickleRefusedError, read_plain_pickle
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 200 * 2**20,) * 2)
for path in sorted(Path(sys.argv[1]).glob("*.pkl")):
    begun = time.process_time()
    try:
        read_plain_pickle(path)
    except PickleRefusedError as error:
        print(len(str(error)) < 500 + len(str(path)), time.process_time() - begun < 1)
"""
    run = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.split() == ["True", "True"] * len(HOSTILE)


def test_lists_that_hold_one_another_are_read_once(tmp_path: Path) -> None:
    laughs = read(b"]q\0" + LAUGHS + b".", tmp_path)
    assert len(laughs) == 10
    assert all(inner is laughs[0] for inner in laughs)


def test_a_pickle_of_too_many_instructions_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plain_pickle, "MOST_OPCODES", 1000)
    with pytest.raises(PickleRefusedError, match="holds more than 1000 instructions"):
        read(b"(" + b"N" * 1000 + b"l.", tmp_path)


def test_a_look_up_is_refused_even_if_the_scan_lets_it_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plain_pickle._Scan, "run", lambda _: None)
    marker = tmp_path / "ran"
    for data, name in attacks(marker).values():
        with pytest.raises(PickleRefusedError, match=f"asks for {name} by name"):
            read(data, tmp_path)
    with pytest.raises(PickleRefusedError, match="asks for secret from outside the file"):
        read(b"Psecret\n.", tmp_path)
    assert not marker.exists()
