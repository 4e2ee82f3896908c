"""What the pages name exists: files, links, tests, modules, commands and their options."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from medalign.cli import app

ROOT = Path(__file__).parents[1]
PACKAGES = ("demo", "eval", "pipeline", "runtime", "teacher_cache", "trainer")
PAGES = sorted(
    [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "CHANGELOG.md",
        ROOT / "benchmarks" / "README.md",
        *(ROOT / "docs").glob("*.md"),
    ]
)
ARCHITECTURE = ROOT / "docs" / "architecture.md"
_TOPS = "|".join((*PACKAGES, "tests", "docs", "benchmarks"))
_PATH = re.compile(rf"(?<![\w/.<-])(?:{_TOPS})/[\w./-]*[\w/](?![\w<*])")
_LINK = re.compile(r"\]\(([^()\s]+)\)")
_TEST = re.compile(r"(?<![\w/])test_\w+\.py")
_MODULE = re.compile(rf"\bmedalign((?:\.(?:{'|'.join(PACKAGES)}))(?:\.\w+)*)")
_NAME = re.compile(r"`(_?[A-Za-z][A-Za-z]*(?:_[a-z]+)*)`")


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.strip().replace(" ", "-") for heading in plain}


def is_there(dotted: str) -> bool:
    """Whether `.trainer.student.load_student` is a module, or a name that a module holds."""
    parts = dotted.strip(".").split(".")
    for length in range(len(parts), 0, -1):
        module = ROOT.joinpath(*parts[:length])
        names = parts[length:]
        if module.is_dir():
            source = (module / "__init__.py").read_text()
        elif module.with_suffix(".py").is_file():
            source = module.with_suffix(".py").read_text()
        else:
            continue
        return all(re.search(rf"\b{name}\b", source) for name in names)
    return False


def commands_of(page: Path) -> Iterator[list[str]]:
    """Words of every line of a page that is a command of medalign."""
    text = page.read_text().replace("\\\n", " ")
    for line in re.findall(r"^ *(medalign .+)$", text, re.MULTILINE):
        yield shlex.split(re.split(r" (?:\|\||&&|;|#) ", line)[0])


def strange_options(words: list[str]) -> set[str]:
    """Options that a command does not have; KeyError where there is no such command."""
    command: Any = typer.main.get_command(app)
    rest = words[1:]
    while rest and hasattr(command, "commands"):
        command, rest = command.commands[rest[0]], rest[1:]
    known = {name for one in command.params for name in (*one.opts, *one.secondary_opts)}
    return {word for word in rest if word.startswith("--")} - known


def test_the_readme_is_a_doorway() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 120
    assert text.count("![") == 1
    assert "constraints.txt" in text


def test_ci_finds_both_commands_in_the_readme() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    first, second = (
        next(line for line in lines if line.endswith(end)) for end in ("medalign demo", "pytest")
    )
    assert first == "python3 -m venv .venv && .venv/bin/pip install . && .venv/bin/medalign demo"
    assert second == ".venv/bin/pip install '.[test]' && .venv/bin/pytest"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_path_that_a_page_names_exists(page: Path) -> None:
    text = page.read_text()
    tests = {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    missing = [path for path in _PATH.findall(text) if not (ROOT / path).exists()]
    missing += [name for name in _TEST.findall(text) if name not in tests]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_within_the_repository_resolves(page: Path) -> None:
    broken = []
    for link in _LINK.findall(page.read_text()):
        target, _, anchor = link.partition("#")
        path = page if not target else page.parent / target
        if "://" in link:
            continue
        if not path.exists() or (anchor and anchor not in anchors(path)):
            broken.append(link)
    assert not broken


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_module_that_a_page_names_exists(page: Path) -> None:
    named = _MODULE.findall(page.read_text())
    assert not [name for name in named if not is_there(name)]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_command_line_has_every_option_that_a_page_shows(page: Path) -> None:
    shown = list(commands_of(page))
    assert not {
        " ".join(words): strange_options(words) for words in shown if strange_options(words)
    }


def test_every_page_is_in_the_index() -> None:
    index = ROOT / "docs" / "README.md"
    linked = {link.partition("#")[0] for link in _LINK.findall(index.read_text())}
    assert not {page.name for page in (ROOT / "docs").glob("*.md")} - linked - {"README.md"}


def test_every_folder_of_the_package_is_in_the_table_of_folders() -> None:
    section = ARCHITECTURE.read_text().partition("## Folders")[2].partition("\n## ")[0]
    listed = set(re.findall(r"^\| `([\w/]+)/` \|", section, re.MULTILINE))
    files = (path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    folders = {path.parent.relative_to(ROOT).as_posix() for path in files}
    assert listed == folders
    assert all(path.name in section for path in ROOT.glob("*.py"))


def test_every_name_in_the_architecture_is_in_the_code() -> None:
    sources = (path for package in PACKAGES for path in (ROOT / package).rglob("*.*"))
    kinds = {".py", ".yaml"}
    words = {
        word
        for path in sources
        if path.suffix in kinds
        for word in re.findall(r"\w+", path.read_text())
    }
    assert not set(_NAME.findall(ARCHITECTURE.read_text())) - words
