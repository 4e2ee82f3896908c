"""`medalign train`."""

import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ..recipe.recipe import Recipe


def train(
    recipe: Annotated[
        str, typer.Argument(help="A YAML file, or a shipped recipe; RECIPE+PART adds a part.")
    ],
    cache: Annotated[str | None, typer.Option(help="Folder or URL of a sealed cache.")] = None,
    manifest: Annotated[Path | None, typer.Option(help="Manifest to train on.")] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of its images.")] = None,
    student: Annotated[Path | None, typer.Option(help="Folder of a Hugging Face student.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Run folder.", show_default="runs/RECIPE")
    ] = None,
    override: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override, as in optim.lr=1e-4."),
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on from the newest checkpoint of --out.")] = True,
    plan: Annotated[
        bool, typer.Option("--plan", help="Say what the run costs, and train nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --plan: print JSON.")] = False,
) -> None:
    """Train a student with LoRA against a teacher cache.

    The same command goes on where a stopped run ended. On several GPUs:
    torchrun --nproc_per_node 8 -m medalign train RECIPE --cache STORE ...
    """
    if as_json and not plan:
        raise typer.BadParameter("--json goes with --plan")
    from ..machine import quiet_libraries
    from ..recipe.compose import find_recipe
    from ..recipe.recipe import Recipe

    source = find_recipe(recipe)
    chosen = Recipe.of(source, override or ())
    quiet_libraries()
    out = out or Path("runs") / source.name
    if plan:
        _print_plan(
            chosen,
            cache,
            out,
            student=student,
            manifest=manifest,
            images=images,
            as_json=as_json,
        )
        return
    from ..prepared import with_paths
    from ..run.live import live_view
    from ..students.tiny import make_demo_student
    from ..train import train as run

    if student is None and chosen.student.path == "demo":
        student = out.parent / "demo-student"
        make_demo_student(student)
    chosen = with_paths(chosen, student=student, manifest=manifest, images=images)
    with live_view() as view:
        result = run(
            chosen,
            cache,
            out,
            resume=resume,
            say=view.say,
            report=view.report,
            watch=[view],
        )
    if os.environ.get("RANK", "0") != "0":
        return
    if result.steps < result.of:
        typer.echo(
            f"stopped at step {result.steps} of {result.of}; run the same command "
            f"{'' if resume else 'without --no-resume '}to go on",
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
    recipe: "Recipe",
    cache: str | None,
    out: Path,
    *,
    student: Path | None,
    manifest: Path | None,
    images: Path | None,
    as_json: bool,
) -> None:
    """Print what a run costs; leaves no file behind."""
    from ..preflight.plan_report import plan_json, plan_lines
    from ..preflight.train_plan import make_plan
    from ..prepared import describe, with_paths
    from ..students.tiny import make_demo_student

    with tempfile.TemporaryDirectory(prefix="medalign-plan-") as scratch:
        if student is None and recipe.student.path == "demo":
            student = Path(scratch) / "demo-student"
            make_demo_student(student)
        chosen = with_paths(recipe, student=student, manifest=manifest, images=images)
        made = make_plan(chosen, cache, out)
    if made is None:
        return
    run, plan = made
    if as_json:
        typer.echo(json.dumps(plan_json(plan), indent=2))
        return
    describe(run, typer.echo)
    for line in plan_lines(plan):
        typer.echo(line)
