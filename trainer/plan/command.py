"""What `medalign train --plan` does."""

import json
import tempfile
from pathlib import Path

import typer

from ..prepare import describe, with_paths
from ..recipe import Recipe
from ..students.tiny import make_demo_student
from .plan import make_plan
from .report import plan_json, plan_lines


def print_plan(
    recipe: Recipe,
    cache: str | None,
    out: Path,
    *,
    student: Path | None,
    manifest: Path | None,
    images: Path | None,
    as_json: bool,
) -> None:
    """Print what a run costs; leaves no file behind."""
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
