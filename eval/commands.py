"""Command line of `medalign eval`, and `medalign cache show`, which draws."""

import enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .generate_command import generate

if TYPE_CHECKING:
    from rich.table import Table

    from .score import Score, Scores

app = typer.Typer(
    no_args_is_help=True, help="Answer questions with a student and score the answers."
)
app.command()(generate)


class TaskName(enum.StrEnum):
    """What can be scored."""

    vqa = "vqa"
    report = "report"


PredictionsPath = Annotated[Path, typer.Argument(help="Predictions, JSON Lines.")]
ManifestPath = Annotated[Path, typer.Argument(help="Manifest the predictions answer.")]
TaskOption = Annotated[TaskName, typer.Option(help="Short answers, or whole reports.")]
OutOption = Annotated[Path, typer.Option(help="Scores file to write, JSON.")]
MissingOption = Annotated[
    bool, typer.Option("--allow-missing", help="Count unanswered records as wrong; else refuse.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the scores file, not a table.")]


@app.command()
def score(
    predictions: PredictionsPath,
    manifest: ManifestPath,
    task: TaskOption,
    out: OutOption,
    allow_missing: MissingOption = False,
    as_json: JsonOption = False,
) -> None:
    """Score predictions: every metric with its 95% interval, n and definition.

    VQA is scored by strict rules and exactly as LLaVA-Med does; reports by BLEU-4, ROUGE-L and
    METEOR, with both ways of cleaning them. Predictions and manifest are joined by id.
    """
    from rich.console import Console

    from .answers import AnswersError
    from .score import score as score_file

    if out.resolve() in (predictions.resolve(), manifest.resolve()):
        raise AnswersError(f"{out}: --out would overwrite what is scored; choose another file")
    scores = score_file(predictions, manifest, task.value, allow_missing=allow_missing)
    scores.write(out)
    if as_json:
        typer.echo(scores.to_json(), nl=False)
        return
    console = Console()
    console.print(_table(scores))
    console.print(_remarks(scores, out), markup=False, highlight=False, soft_wrap=True)


def cache_show(
    store: Annotated[str, typer.Argument(help="Folder or URL of the cache.", show_default=False)],
    key: Annotated[
        str, typer.Argument(help="Image path, SHA-256 of an image file, or row number.")
    ],
    images: Annotated[
        Path | None,
        typer.Option(help="Folder of the images.", show_default="where the build found them"),
    ] = None,
    patch: Annotated[
        str | None,
        typer.Option(
            metavar="R,C",
            help="Patch to compare the others with, row and column from 0.",
            show_default="the most attended",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="PNG to write.", show_default="row-N.png")
    ] = None,
) -> None:
    """Draw one row: the image, where the expert looks, which patches it finds alike, padding."""
    from ..teacher_cache.reader import TeacherCache
    from .cache_show import find_row, parse_patch, show

    cache = TeacherCache.open(store, allow_building=True)
    row = find_row(cache, key)
    path = Path(f"row-{row}.png") if out is None else out
    shown = show(
        cache, key, path, images=images, patch=None if patch is None else parse_patch(patch)
    )
    if shown.remark:
        typer.echo(f"without the image: {shown.remark}", err=True)
    typer.echo(f"{path}: row {shown.row}, {shown.path}, patch {shown.patch[0]},{shown.patch[1]}")


def _table(scores: "Scores") -> "Table":
    """Return one row per metric and one column per protocol."""
    from rich.table import Table

    level = f"{100 * scores.interval['level']:g}%"
    table = Table(
        title=f"{scores.task}, decoder {scores.decoder}: percent [{level} interval]",
        title_justify="left",
    )
    protocols = list(dict.fromkeys(metric.protocol for metric in scores.metrics))
    table.add_column("metric")
    table.add_column("n", justify="right")
    for protocol in protocols:
        table.add_column(protocol, justify="right")
    found = {(metric.name, metric.protocol): metric for metric in scores.metrics}
    for name, n in {metric.name: metric.n for metric in scores.metrics}.items():
        cells = [_cell(found.get((name, protocol))) for protocol in protocols]
        table.add_row(name, str(n), *cells)
    return table


def _cell(metric: "Score | None") -> str:
    if metric is None:
        return "-"
    low, high = metric.interval
    return rf"{metric.value:.1f} \[{low:.1f}, {high:.1f}]"


def _remarks(scores: "Scores", out: Path) -> str:
    counts = ", ".join(f"{name} {count}" for name, count in scores.counts.items() if count)
    lines = [f"counts: {counts}"]
    if scores.task == "report":
        used = f"WordNet {scores.wordnet}" if scores.wordnet else "no WordNet found, no synonyms"
        lines.append(f"METEOR: {used}")
    lines.append(f"definitions, versions and digests: {out}")
    return "\n".join(lines)
