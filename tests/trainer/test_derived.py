"""Settings that follow from a recipe are computed in one file, once in every process."""

import ast
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from medalign.trainer import derived, prepared
from medalign.trainer import train as training
from medalign.trainer.derived import derive
from medalign.trainer.distributed import zero_config
from medalign.trainer.prepared import with_paths
from medalign.trainer.recipe.recipe import Recipe
from medalign.trainer.students.families import FAMILIES

ROOT = Path(__file__).parents[2]
SOURCES = sorted(
    path
    for path in (ROOT / "trainer").rglob("*.py")
    if path.parent.name != "recipe"  # a recipe's own words; no machine is looked at
)
READ_IN = {  # who may look at what a recipe leaves to machine, ranks and DeepSpeed's file
    "student.dtype": {"trainer/derived.py"},
    # The doctor looks for the package of the kernel, before there is a run.
    "student.attention": {"trainer/derived.py", "trainer/preflight/doctor.py"},
    "deepspeed.stage": set[str](),
    "data.micro_steps": {
        "trainer/derived.py",
        "trainer/distributed/zero_config.py",
        "trainer/preflight/advice.py",  # other splits of the same step
        "trainer/preflight/doctor.py",
    },
}
CALLED_IN = {
    "zero_config": {"trainer/derived.py"},
    "derive": {"trainer/prepared.py", "trainer/preflight/doctor.py"},
    "prepare": {"trainer/train.py", "trainer/preflight/train_plan.py"},
}


@pytest.fixture
def run(
    dataset: Callable[..., tuple[Path, Path, Path]],
    students: Callable[..., Path],
    recipe: Callable[..., Recipe],
    tmp_path: Path,
) -> Callable[..., None]:
    """Train for two steps."""

    def train(**changes: Any) -> None:
        manifest, images, cache = dataset()
        chosen = recipe(**{"run.steps": 2, **changes})
        chosen = with_paths(chosen, student=students(), manifest=manifest, images=images)
        training.train(chosen, cache, tmp_path / "run", say=lambda _: None, report=lambda *_: None)

    return train


def test_a_run_is_prepared_once_and_reads_deepspeeds_file_once(
    run: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "deepspeed.json"
    config.write_text(json.dumps({"zero_optimization": {"stage": 2}}))
    calls: list[str] = []

    def counted(module: Any, name: str) -> None:
        function = getattr(module, name)

        def call(*args: Any, **options: Any) -> Any:
            calls.append(name)
            return function(*args, **options)

        monkeypatch.setattr(module, name, call)

    counted(training, "prepare")
    counted(prepared, "derive")
    counted(derived, "zero_config")
    counted(derived, "_dtype")
    counted(derived, "_attention")
    counted(zero_config, "_read")
    run(**{"deepspeed.config": str(config)})
    assert sorted(calls) == ["_attention", "_dtype", "_read", "derive", "prepare", "zero_config"]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_second_place_derives_precision_stage_kernel_or_micro_steps(path: Path) -> None:
    name = path.relative_to(ROOT).as_posix()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            text = ast.unparse(node)
            key = ".".join(text.split(".")[-2:])
            if key in READ_IN and ("recipe" in text or key == "data.micro_steps"):
                assert name in READ_IN[key], f"{name}:{node.lineno} reads {text}: take it derived"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            files = CALLED_IN.get(node.func.id, {name})
            assert name in files, f"{name}:{node.lineno} calls {node.func.id} again"


@pytest.mark.parametrize(
    ("dtype", "gpu", "expected"),
    [
        ("auto", False, torch.float32),
        ("auto", True, torch.bfloat16),
        ("fp32", True, torch.float32),
        ("bf16", False, torch.bfloat16),
    ],
)
def test_the_precision_follows_from_recipe_and_machine(
    dtype: str,
    gpu: bool,
    expected: torch.dtype,
    recipe: Callable[..., Recipe],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    chosen = recipe(**{"student.dtype": dtype, "deepspeed.stage": 2, "data.accumulation": 3})
    settings = derive(chosen, world=4)
    assert settings.dtype == expected
    assert settings.zero["bf16"]["enabled"] == (expected == torch.bfloat16)
    assert (settings.stage, settings.micro_steps, settings.per_step) == (2, 3, 2 * 3 * 4)
    assert settings.on_gpu(chosen).dtype == (torch.float32 if dtype == "fp32" else torch.bfloat16)


@pytest.mark.parametrize(
    ("family", "installed", "kernel"),
    [
        ("llava", True, "flash_attention_2"),
        ("llava", False, "sdpa"),
        ("gemma3", True, "sdpa"),  # its mask looks ahead within an image
        (None, True, "sdpa"),
    ],
)
def test_flash_attention_runs_where_it_is_installed_and_the_family_allows_it(
    family: str | None,
    installed: bool,
    kernel: str,
    recipe: Callable[..., Recipe],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(derived, "find_spec", lambda _: object() if installed else None)
    chosen = recipe(**{"student.dtype": "bf16", "deepspeed.stage": 2})
    settings = derive(chosen, 1, None if family is None else FAMILIES[family])
    assert settings.attention == kernel
    assert settings.flash == (kernel != "sdpa")
    fp32 = recipe(**{"student.dtype": "fp32", "deepspeed.stage": 2})
    assert derive(fp32, 1, FAMILIES["llava"]).attention == "sdpa"
