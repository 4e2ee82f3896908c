"""`import medalign`: the names that users are told of, none of them before it is used."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import medalign

ROOT = Path(__file__).parents[1]


def test_importing_medalign_imports_no_library() -> None:
    code = (
        "import sys; before = set(sys.modules); import medalign; print(*set(sys.modules) - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert loaded <= {"medalign", *sys.stdlib_module_names}


@pytest.mark.parametrize("name", sorted(medalign._HOMES))
def test_every_public_name_is_there_and_documented(name: str) -> None:
    value = getattr(medalign, name)
    assert value.__module__.startswith("medalign.")
    assert value.__doc__
    assert name in dir(medalign)
    assert medalign.__doc__
    assert name in medalign.__doc__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'medalign' has no attribute 'TeacherCash'"):
        medalign.TeacherCash  # noqa: B018


def test_type_checkers_see_the_names_that_run_time_has() -> None:
    tree = ast.parse((ROOT / "__init__.py").read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    homes = {node.names[0].name: node.module for node in imports}
    assert homes == medalign._HOMES


def test_help_fits_a_screen_or_two() -> None:
    code = "import medalign; help(medalign)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) < 80
    assert any(line.split()[:1] == ["TeacherCache"] for line in lines)
