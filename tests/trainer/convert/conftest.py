"""Original checkpoints of both families, and what they become."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from medalign.trainer.convert.checkpoint_families import ORIGINALS
from medalign.trainer.convert.convert import Converted, Wish, convert

SHARD = 120_000


@contextmanager
def no_stage(_what: str, _total: int) -> Iterator[Callable[[int], None]]:
    yield lambda _count: None


@pytest.fixture(scope="session")
def made(originals: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Make a checkpoint of a family once: `made("llava-med", tower="none", form="bin", ...)`."""
    known: dict[str, Path] = {}
    makers = {"llava-med": originals.make_llava_med, "huatuo-vision": originals.make_huatuo}

    def make(family: str, **wanted: Any) -> Path:
        key = repr((family, sorted(wanted.items(), key=repr)))
        if key not in known:
            folder = tmp_path_factory.mktemp("made") / family
            known[key] = makers[family](folder, **wanted)
        return known[key]

    return make


@pytest.fixture(scope="session")
def clip(originals: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole CLIP folder, as OpenAI's."""
    folder: Path = originals.make_clip(tmp_path_factory.mktemp("clip") / "clip-vit-large-patch14")
    return folder


@pytest.fixture(scope="session")
def converts() -> Callable[..., Converted]:
    """Convert: `converts(source, out, "llava-med", dtype="fp16")`; files of 120 kB."""

    def run(source: Path, out: Path, family: str, stage: Any = no_stage, **wish: Any) -> Converted:
        asked = Wish(**{"shard_bytes": SHARD, **wish})
        return convert(source, out, ORIGINALS[family], asked, stage)

    return run


@pytest.fixture(scope="session")
def converted(
    made: Callable[..., Path],
    converts: Callable[..., Converted],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., Path]:
    """Folder of a converted checkpoint, made once; tests must not change it."""
    known: dict[str, Path] = {}

    def make(family: str, **wanted: Any) -> Path:
        key = repr((family, sorted(wanted.items(), key=repr)))
        if key not in known:
            out = tmp_path_factory.mktemp("converted") / family
            known[key] = converts(made(family, **wanted), out, family).out
        return known[key]

    return make


@pytest.fixture
def source(made: Callable[..., Path], tmp_path: Path) -> Path:
    """A LLaVA-Med checkpoint that a test may change."""
    return Path(shutil.copytree(made("llava-med"), tmp_path / "med"))


@pytest.fixture
def student(converted: Callable[..., Path], tmp_path: Path) -> Path:
    """A converted LLaVA-Med that a test may change."""
    return Path(shutil.copytree(converted("llava-med"), tmp_path / "student"))
