"""The group of `medalign eval` commands."""

import typer

from .figures import figures
from .generate import generate
from .report import report
from .score import compare, report_texts, score, table

app = typer.Typer(
    no_args_is_help=True, help="Answer questions with a student and score the answers."
)
app.command(
    epilog="Example: medalign eval generate runs/demo test.jsonl --images images "
    "--out answers.jsonl"
)(generate)
app.command(
    epilog="Example: medalign eval score answers.jsonl test.jsonl --task vqa --out scores.json"
)(score)
app.command()(compare)
app.command()(table)
app.command()(report)
app.command()(figures)
app.command("report-texts")(report_texts)


@app.command("lmms-tasks")
def lmms_tasks() -> None:
    """Print the folder of tasks for lmms-eval's `--include_path`."""
    from ..lmms_eval.tasks import TASKS

    typer.echo(TASKS)
