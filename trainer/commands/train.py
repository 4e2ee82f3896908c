"""`medalign train`."""

import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...runtime import arguments as args
from .recipes import Name, Overrides

if TYPE_CHECKING:
    from ..recipe.recipe import Recipe
    from ..train import Result


def train(
    recipe: Name,
    cache: args.CacheOption = None,
    manifest: args.RecipeManifest = None,
    images: args.RecipeImages = None,
    student: args.RecipeStudent = None,
    out: Annotated[
        Path | None,
        args.option("Run folder.", problem=args.no_new_folder, show_default="runs/RECIPE"),
    ] = None,
    override: Overrides = None,
    resume: Annotated[
        bool, args.flag("Continue from the newest checkpoint in --out, if there is one.")
    ] = True,
    plan: Annotated[
        bool, args.flag("Print what the run costs, and train nothing.", "--plan")
    ] = False,
    as_json: Annotated[bool, args.flag("Print the plan as JSON.", "--json")] = False,
) -> None:
    """Train a student with LoRA against a teacher cache.

    The same command continues a stopped run. On several GPUs:
    torchrun --nproc_per_node 8 -m medalign train RECIPE --cache STORE ...
    """
    if as_json and not plan:
        raise args.ArgumentError("--json goes with --plan; give both or neither")
    from ..recipe.compose import find_recipe
    from ..recipe.recipe import Recipe

    source = find_recipe(recipe)
    chosen = Recipe.of(source, override or ())
    _check_paths(chosen, cache, manifest, images, student)
    from ..machine import quiet_libraries

    quiet_libraries()
    paths = {"student": student, "manifest": manifest, "images": images}
    out = out or Path("runs") / source.name
    if plan:
        _print_plan(chosen, paths, cache, out, as_json=as_json)
        return
    from ..run.live import live_view
    from ..train import train as run

    chosen = _with_paths(chosen, paths, out.parent)
    with live_view() as view:
        result = run(
            chosen, cache, out, resume=resume, say=view.say, report=view.report, watch=[view]
        )
    if os.environ.get("RANK", "0") == "0":
        _print_result(result, resume=resume)


def _check_paths(
    recipe: "Recipe",
    cache: str | None,
    manifest: Path | None,
    images: Path | None,
    student: Path | None,
) -> None:
    """Refuse a run that lacks its student, data or cache, before torch is imported.

    Raises:
        ArgumentError: names the key of the recipe and the option that takes its place.
        TeacherCacheError: a folder is no cache.
    """
    data, validation = recipe.data, recipe.validation
    for name, path, key, written, problem in (
        ("student", student, "student.path", recipe.student.path, args.no_student),
        ("manifest", manifest, "data.manifest", data.manifest, args.no_file),
        ("images", images, "data.images", data.images, args.no_folder),
    ):
        if path is None and written is None:
            raise args.ArgumentError(f"the recipe names no {name}: give --{name}")
        if path is None and written != "demo" and (wrong := problem(str(written))):
            raise args.ArgumentError(f"{key} {written}: {wrong}; mend the recipe or give --{name}")
    for key, written, problem in (
        ("validation.manifest", validation.manifest, args.no_file),
        ("validation.images", validation.images, args.no_folder),
    ):
        if written is not None and (wrong := problem(written)):
            raise args.ArgumentError(
                f"{key} {written}: {wrong}; mend the recipe or override it by --set"
            )
    if cache is None and (recipe.loss.alpha or recipe.loss.beta):
        raise args.ArgumentError(
            "the recipe trains on a teacher (loss.alpha or loss.beta above 0): give --cache STORE"
        )
    if cache is not None and "://" not in cache:
        from ...teacher_cache.attributes import load_attributes
        from ...teacher_cache.storage.local import open_storage

        load_attributes(open_storage(cache))


def _with_paths(recipe: "Recipe", paths: dict[str, Path | None], folder: Path) -> "Recipe":
    """Fill in the paths of the command line; make the demo student in a folder, if it is used."""
    from ..prepared import with_paths
    from ..students.tiny import make_demo_student

    student = paths["student"]
    if student is None and recipe.student.path == "demo":
        student = folder / "demo-student"
        make_demo_student(student)
    return with_paths(recipe, student=student, manifest=paths["manifest"], images=paths["images"])


def _print_result(result: "Result", *, resume: bool) -> None:
    """Print where the adapters are; exit 130 if the run was stopped, 1 if it skipped records."""
    if result.steps < result.of:
        typer.echo(
            f"stopped at step {result.steps} of {result.of}; to continue, run the same command"
            f"{'' if resume else ' without --no-resume'}",
            err=True,
        )
        raise typer.Exit(130)
    typer.echo(f"run      {result.out}")
    typer.echo(f"adapter  {result.out / 'adapter'}, of the last step, {result.steps}")
    if result.best is not None:
        typer.echo(f"best     {result.out / 'adapter-best'}, of {result.best}, the lowest")
    if result.skipped:
        record, reason = result.skipped[0]
        typer.echo(
            f"{len(result.skipped)} times a conversation could not be read and was not learnt, "
            f"first record {record!r}: {reason}; all are in {result.out / 'skipped.jsonl'}",
            err=True,
        )
        raise typer.Exit(1)


def _print_plan(
    recipe: "Recipe", paths: dict[str, Path | None], cache: str | None, out: Path, *, as_json: bool
) -> None:
    """Print what a run costs; leaves no file behind."""
    from ..preflight.plan_report import plan_json, plan_lines
    from ..preflight.train_plan import make_plan
    from ..prepared import describe

    with tempfile.TemporaryDirectory(prefix="medalign-plan-") as scratch:
        planned = make_plan(_with_paths(recipe, paths, Path(scratch)), cache, out)
    if planned is None:
        return
    run, plan = planned
    if as_json:
        typer.echo(json.dumps(plan_json(plan), indent=2))
        return
    describe(run, typer.echo)
    for line in plan_lines(plan):
        typer.echo(line)
