"""The rules of the code base that no linter knows."""

import ast
import subprocess
import sys
import tomllib
from collections import Counter
from graphlib import TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
FOLDERS = ("demo", "eval", "pipeline", "runtime", "teacher_cache", "trainer")
LOWER_HALF = {  # what the trainer may take of the pipeline: it never sees an expert
    "pipeline.geometry",
    "pipeline.manifest",
    "pipeline.pixels",
}
CHECKERS = {  # doctor and train name what `data check` names, by the same code
    "pipeline.hygiene.finding",
    "pipeline.hygiene.image_check",
    "pipeline.hygiene.manifest_check",
}
MAY_IMPORT = {
    "runtime": set[str](),
    "teacher_cache": {"runtime"},
    "pipeline": {"runtime", "teacher_cache"},
    "trainer": {"runtime", "teacher_cache", *LOWER_HALF, *CHECKERS},
    "eval": {"runtime", "teacher_cache", "trainer", *LOWER_HALF},
    "demo": {"runtime", "eval", "pipeline", "teacher_cache", "trainer"},
    "cli.py": set(FOLDERS),
}
ONLY_IN = {  # each heavy library has one door
    "deepspeed": {"trainer/distributed/ranks.py"},
    "lmms_eval": {"eval/lmms_eval/model.py", "eval/lmms_eval/register.py"},
    "open_clip": {"pipeline/tower.py"},
    "peft": {"trainer/student.py"},
    # Nothing is ever unpickled but PathVQA's questions, by a reader that looks no name up.
    "pickle": {"pipeline/datasets/plain_pickle.py"},
    "pyarrow": {"pipeline/datasets/parquet.py"},
    "pydicom": {"pipeline/dicom.py"},
    "timm": {"pipeline/tower.py"},
    "wandb": {"trainer/run/loggers.py"},
    "zarr": {"teacher_cache/metadata.py"},
}
SOURCES = sorted(
    [
        ROOT / "cli.py",
        ROOT / "__main__.py",
        *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")),
    ]
)


def imports(path: Path) -> list[tuple[int, str]]:
    """(level, module) of every import statement in a file."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            found.append((node.level, node.module or ""))
        elif isinstance(node, ast.Import):
            found += [(0, alias.name) for alias in node.names]
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_downwards(path: Path) -> None:
    where = path.relative_to(ROOT)
    for level, module in imports(path):
        head = module.split(".")[0]
        assert head != "medalign", f"{where}: inside the package, import relatively"
        assert level <= 3, f"{where}: import of {module} reaches too far"
        if level == len(where.parts) and level > 1:  # reaches the package root
            allowed = MAY_IMPORT[where.parts[0]] | {where.parts[0]}
            # `from .. import __version__` takes nothing but the root's own version.
            assert not module or {head, module} & allowed, f"{where} may not import {module}"
        if level == 0 and head in ONLY_IN:
            assert where.as_posix() in ONLY_IN[head], f"{where} may not import {head}"


def test_every_package_is_shipped() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {path.parent.relative_to(ROOT) for path in SOURCES}
    assert set(config["packages"]) == {".".join(("medalign", *folder.parts)) for folder in folders}
    # Any other module at the root would land in the wheel as medalign.<name>.
    assert {path.name for path in ROOT.glob("*.py")} == {"__init__.py", "__main__.py", "cli.py"}


def _declared(*, extras: bool) -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"]]
    groups += project["optional-dependencies"].values() if extras else []
    return {canonicalize_name(Requirement(line).name) for group in groups for line in group}


def _imported() -> dict[str, set[str]]:
    """Library that the shipped files import -> names of the distributions that hold it."""
    # lmms-eval loads the files that import it itself; _typeshed exists for type checkers alone.
    provided = {"lmms_eval", "_typeshed", *sys.stdlib_module_names}
    heads = {m.split(".")[0] for path in SOURCES for level, m in imports(path) if level == 0}
    installed = packages_distributions()
    return {
        head: {canonicalize_name(name) for name in installed.get(head, [head])}
        for head in heads - provided
    }


def test_every_library_that_is_imported_is_declared() -> None:
    declared = _declared(extras=True)
    assert not {head for head, names in _imported().items() if not names & declared}


def test_every_library_that_is_declared_is_imported() -> None:
    imported = set[str]().union(*_imported().values())
    assert not _declared(extras=False) - imported


def test_tested_versions_are_within_the_declared_bounds() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    tested = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for requirement in map(Requirement, project["dependencies"]):
        version = tested[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), requirement


def test_the_sample_is_small_and_every_image_is_credited() -> None:
    sample = ROOT / "demo" / "sample"
    files = [path for path in sample.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 2_500_000
    credited = (sample / "ATTRIBUTION.md").read_text()
    images = sorted((sample / "images").iterdir())
    assert len(images) == 24
    for image in images:
        assert f"`{image.name}`" in credited


def test_help_loads_nothing_heavy() -> None:
    heavy = "{'torch', 'zarr', 'deepspeed', 'transformers', 'numpy', 'pydantic'}"
    code = f"import sys, medalign.cli; sys.exit(str(sorted({heavy} & set(sys.modules))))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stderr.strip() == "[]"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_importing_a_module_does_nothing(path: Path) -> None:
    harmless = {"add_implicit_resolver", "add_typer"}  # on the module's own objects
    for node in ast.parse(path.read_text()).body:
        if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)):
            continue
        called = node.value.func
        if isinstance(called, ast.Call):  # app.command()(function)
            called = called.func
        name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
        allowed = name in harmless or name == "command" or path.name == "__main__.py"
        assert allowed, f"{path.relative_to(ROOT)}:{node.lineno} calls {name} on import"


def test_no_folder_is_crowded_and_the_house_stays_small() -> None:
    files = [path for path in SOURCES if path.parent != ROOT]
    rooms = Counter(path.parent for path in files)
    crowded = {str(folder.relative_to(ROOT)) for folder, count in rooms.items() if count > 17}
    assert not crowded
    assert len(SOURCES) <= 280


def test_no_file_name_has_two_meanings() -> None:
    """`commands/NAME.py` holds the command NAME, whatever another file of that name does."""
    names = Counter(
        path.name
        for path in SOURCES
        if path.name != "__init__.py" and "commands" not in (path.parent.name, path.stem)
    )
    assert {name for name, count in names.items() if count > 1} == set()


def test_nothing_is_defined_twice_in_a_file() -> None:
    """The later definition would win for both users of the name; no linter sees constants."""
    for path in SOURCES:
        defined: Counter[str] = Counter()
        for node in ast.parse(path.read_text()).body:
            targets = node.targets if isinstance(node, ast.Assign) else [node]
            for target in targets:
                name = getattr(getattr(target, "target", target), "name", None)
                name = name or getattr(getattr(target, "target", target), "id", None)
                defined[name or ""] += bool(name)
        assert max(defined.values(), default=0) <= 1, (path, defined.most_common(1))


def _module(path: Path) -> tuple[str, ...]:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


def test_no_import_goes_round_in_a_circle() -> None:
    """Also through imports inside functions, but for those that only type checkers read."""
    modules = {_module(path): path for path in SOURCES}
    graph: dict[tuple[str, ...], set[tuple[str, ...]]] = {}
    for module, path in modules.items():
        package = module if path.name == "__init__.py" else module[:-1]
        tree = ast.parse(path.read_text())
        ignored = {
            id(inner)
            for node in ast.walk(tree)
            if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
            for inner in ast.walk(node)
        }
        graph[module] = set()
        for node in ast.walk(tree):
            if not isinstance(node, ast.ImportFrom) or not node.level or id(node) in ignored:
                continue
            up = package[: len(package) - node.level + 1]
            base = (*up, *(node.module or "").split(".")) if node.module else up
            for alias in node.names:
                target = (*base, alias.name) if (*base, alias.name) in modules else base
                if target in modules and target != module:
                    graph[module].add(target)
    order = TopologicalSorter(graph)
    order.prepare()  # raises CycleError, which names the circle
