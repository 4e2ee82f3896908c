from collections.abc import Callable
from pathlib import Path

import pytest

from medalign.runtime.checks import Checks, UntrustedError, is_sha256


class MineError(ValueError):
    """The error of some package."""


CHECKS = Checks(MineError)


def test_what_fits_comes_back(tmp_path: Path) -> None:
    (tmp_path / "file.json").write_text('{"a": 1, "b": "text"}')
    value = CHECKS.read_object(tmp_path / "file.json")
    assert CHECKS.fields(value, ("a",), "a file", optional=("b", "c")) == value
    assert CHECKS.text(value["b"], "b") == "text"
    assert CHECKS.text("", "b", empty=True) == ""
    assert CHECKS.sha256("0f" * 32, "digest") == "0f" * 32
    CHECKS.integer(value["a"], "a", 0, 1)
    CHECKS.choice(value["b"], "b", ("text", "image"))
    CHECKS.kind(value["a"], "a", int)


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (lambda: CHECKS.mapping([], "a file"), r"a file takes a JSON object, got \[\]"),
        (
            lambda: CHECKS.fields({"b": 1}, ("a",), "a file"),
            r"a file: missing keys \['a'\], unknown keys \['b'\]",
        ),
        (lambda: CHECKS.text("", "name"), "name takes a text, got ''"),
        (lambda: CHECKS.text("x" * (2**20 + 1), "name"), "name takes a text, got 'x"),
        (lambda: CHECKS.sha256("0F" * 32, "digest"), "digest takes 64 lower-case hex digits"),
        (lambda: CHECKS.choice("c", "kind", ("a", "b")), "kind takes one of a, b, got 'c'"),
        (lambda: CHECKS.integer(True, "rows", 0, 9), "rows takes 0 to 9, got True"),
        (lambda: CHECKS.integer(10, "rows", 0, 9), "rows takes 0 to 9, got 10"),
        (lambda: CHECKS.kind("1", "seed", int), "seed takes a int, got '1'"),
    ],
)
def test_what_does_not_fit_is_the_error_of_who_asks(
    check: Callable[[], object], message: str
) -> None:
    with pytest.raises(MineError, match=message):
        check()


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "is no JSON:"), ("[1]", "is no JSON object"), ("[" * 9999, "is no JSON:")],
)
def test_a_file_that_holds_no_object_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "file.json").write_text(text)
    with pytest.raises(UntrustedError, match=rf"file\.json {message}"):
        Checks().read_object(tmp_path / "file.json")


def test_a_digest_is_64_lower_case_hex_digits() -> None:
    assert is_sha256("a" * 64)
    assert not is_sha256("a" * 63)
    assert not is_sha256("a" * 64 + "\n")
