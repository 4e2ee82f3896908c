import tomllib
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, get_args

import pytest

from medalign.eval.commands.generate import DecoderChoice
from medalign.eval.commands.options import TaskName
from medalign.eval.metrics.definitions import report_definitions, vqa_definitions
from medalign.pipeline.datasets.registry import DATA_SETS
from medalign.trainer.convert.checkpoint_families import ORIGINALS
from medalign.trainer.recipe.compose import (
    find_recipe,
    first_comment,
    read_in_order,
    read_settings,
    shipped_parts,
    shipped_recipes,
    shipped_variants,
)
from medalign.trainer.recipe.cost import STUDENTS
from medalign.trainer.recipe.paper import DataName
from medalign.trainer.recipe.recipe import Recipe

ROOT = Path(__file__).parents[2]
SETS = (
    "slake",
    "vqa-rad",
    "pathvqa",
    "omnimedvqa",
    "iu-xray-vqa",
    "iu-xray-report",
    "mimic-cxr-report",
)
ROWS = [f"{student}-{data}" for student in ("llava-med", "huatuo") for data in SETS]
LAYERS = range(4, 29, 4)
CHANGES: dict[str, dict[str, Any]] = {
    "no-vis": {"loss.alpha": 0.0},
    "no-att": {"loss.beta": 0.0},
    "neither": {"loss.alpha": 0.0, "loss.beta": 0.0},
    "plain-lora": {"loss.alpha": 0.0, "loss.beta": 0.0, "loss.rotation": False},
    "unimed-b": {"expert.name": "unimed-b"},
    "biomedclip": {"expert.name": "biomedclip"},
    "aligned": {"expert.mode": "aligned", "loss.attention": "sum", "loss.beta": 0.001},
    **{f"layer-{layer}": {"loss.layer": layer} for layer in LAYERS},
}


def leaves(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Every value of a file by its dotted key."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found |= leaves(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


def written(path: Path) -> dict[str, Any]:
    """What one file says by itself, beside its marks and what it extends."""
    found = leaves(read_settings(path)[0])
    return {
        key: value
        for key, value in found.items()
        if key != "extends" and not key.startswith("paper.assumed.")
    }


def test_every_row_of_the_paper_that_trains_is_there() -> None:
    assert set(shipped_recipes()) == {"demo", *ROWS}
    assert set(shipped_variants()) == set(CHANGES)
    names = [*shipped_recipes(), *shipped_parts(), *shipped_variants()]
    assert len(names) == len(set(names)), "one name means one file"


@pytest.mark.parametrize("name", ROWS)
def test_a_row_trains_its_student_on_its_data_as_the_authors_do(name: str) -> None:
    recipe = Recipe.of(find_recipe(name))
    paper, report = recipe.paper, "report" in name
    assert name == f"{'huatuo' if paper.student == 'huatuo-vision' else paper.student}-{paper.data}"
    assert paper.task == ("report" if report else "vqa")
    assert (recipe.lora.rank, recipe.lora.alpha, recipe.lora.dropout) == (
        64 if report else 32,
        16.0,
        0.05,
    )
    assert (recipe.optim.lr, recipe.optim.projector_lr) == (2e-4, 2e-5)
    assert (recipe.optim.schedule, recipe.optim.warmup_ratio) == ("cosine", 0.03)
    assert (recipe.data.per_step, recipe.data.max_length) == (32, 1024)
    assert (recipe.loss.attention, recipe.expert.mode) == ("l2", "paper")
    assert (recipe.student.dtype, recipe.run.seed) == ("bf16", 4)
    assert recipe.loss.layer == (16 if name == "huatuo-slake" else 20)
    assert recipe.loss.beta == (0.06 if "vqa-rad" in name else 0.03)
    assert recipe.run.epochs == (12 if report else 9 if "vqa-rad" in name else 6)
    assert recipe.paper.max_new_tokens == (128 if "huatuo" in name else 1024)
    assert "beam" in paper.decoders
    assert paper.beams == 5


def test_what_has_no_script_of_the_authors_is_marked() -> None:
    marked = {name: set(Recipe.of(find_recipe(name)).paper.assumed) for name in ROWS}
    everywhere = set.intersection(*marked.values())
    settings = {"student.gradient_checkpointing", "deepspeed.stage", "optim.clip"}
    assert everywhere == {*settings, "expert.name"}
    borrowed = {"run.epochs", "loss.alpha", "loss.beta"}
    own = {
        "huatuo-slake": set(),
        "llava-med-slake": borrowed,
        "llava-med-vqa-rad": {"loss.alpha"},
        "huatuo-vqa-rad": borrowed,
        "llava-med-iu-xray-report": {"run.epochs", "loss.layer"},
        "huatuo-iu-xray-report": {"run.epochs", "loss.layer"},
    }
    for name, marks in marked.items():
        assert marks - everywhere == own.get(name, {*borrowed, "lora.rank"}), name


@pytest.mark.parametrize("variant", CHANGES)
def test_a_variant_changes_exactly_what_it_says(variant: str) -> None:
    for name in ("llava-med-pathvqa", "huatuo-iu-xray-report"):
        before = Recipe.of(find_recipe(name))
        after = Recipe.of(find_recipe(f"{name}+{variant}"))
        old, new = before.flat(), after.flat()
        wanted = {key: value for key, value in CHANGES[variant].items() if old[key] != value}
        assert {key: new[key] for key in new if new[key] != old[key]} == wanted
        # Nobody but us says which beta belongs to `sum`.
        ours = {"loss.beta"} if variant == "aligned" else set()
        assert set(CHANGES[variant]) & set(after.paper.assumed) == ours
        assert after.paper.numbers == ()  # the row's figures are not those of its variants


def test_a_value_stands_in_one_file() -> None:
    parts = {k: v for k, v in shipped_parts().items() if k != "ablation"}
    rows = {name: shipped_recipes()[name] for name in ROWS}
    seen: dict[str, str] = {}
    for name, path in {**parts, **rows}.items():
        for key, value in written(path).items():
            place = f"{key}: {value}"
            assert place not in seen, f"{place} stands in {seen[place]} and in {name}"
            seen[place] = name


@pytest.mark.parametrize("name", ROWS)
def test_no_file_of_a_row_says_again_what_was_said(name: str) -> None:
    said: dict[str, Any] = {}
    for path in read_in_order(find_recipe(name)):
        for key, value in written(path).items():
            assert key not in said or said[key] != value, f"{path.name} says {key} again"
            said[key] = value


def test_what_is_named_exists_where_it_is_used() -> None:
    known = {name for _, name in (*vqa_definitions(), *report_definitions(None))}
    for name in ROWS:
        paper = Recipe.of(find_recipe(name)).paper
        assert {number.metric for number in paper.numbers} <= known
        assert set(paper.decoders) <= {choice.value for choice in DecoderChoice}
        assert paper.task in {task.value for task in TaskName}
        assert paper.counted


def test_every_file_says_what_it_is() -> None:
    for path in (*shipped_recipes().values(), *shipped_parts().values()):
        assert len(first_comment(path).split()) > 2, path
    for path in shipped_variants().values():
        assert len(first_comment(path).split()) > 2, path


def test_every_file_is_in_the_package() -> None:
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    patterns = tool["package-data"]["medalign.trainer"]
    for path in (ROOT / "trainer" / "recipes").rglob("*"):
        if path.is_file():
            where = path.relative_to(ROOT / "trainer")
            fits = (
                fnmatch(str(where), p) for p in patterns if p.count("/") == len(where.parts) - 1
            )
            assert any(fits), f"{where} would not be installed"


def test_names_and_counts_are_those_that_readers_and_converters_know() -> None:
    assert set(get_args(DataName)) == set(DATA_SETS) == set(SETS)
    families = {Recipe.of(find_recipe(name)).paper.student for name in ROWS}
    assert families == set(ORIGINALS) == set(STUDENTS)
    for data in SETS:
        paper = Recipe.of(find_recipe(f"huatuo-{data}")).paper
        published = [found.counts for found in DATA_SETS[data].published]
        train = paper.train_conversations
        known = [counts for split in published for counts in split.values()]
        assert any(counts.records == train for counts in known), data
        images = [counts.images for counts in known if counts.images is not None]
        # R2Gen's own images of MIMIC-CXR are one a report; nobody counts them apart.
        assert paper.train_images in images or paper.train_images == train, data
        tested = {counts["test"].records for counts in published if "test" in counts}
        assert paper.test_conversations in (tested or {None}), data
