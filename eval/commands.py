"""Command line of `medalign eval`, and `medalign cache show`, which draws."""

import enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from .score import Score, Scores

app = typer.Typer(
    no_args_is_help=True, help="Answer questions with a student and score the answers."
)


class DecoderChoice(enum.StrEnum):
    """How the next token is chosen."""

    greedy = "greedy"
    beam = "beam"
    nucleus = "nucleus"


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
def generate(
    source: Annotated[
        Path, typer.Argument(help="Run folder, adapter folder, or a student's folder.")
    ],
    manifest: Annotated[Path, typer.Argument(help="Manifest of questions.")],
    images: Annotated[Path, typer.Option(help="Folder of its images.")],
    out: Annotated[Path, typer.Option(help="Predictions file to write, JSON Lines.")],
    decoder: Annotated[DecoderChoice, typer.Option(help="Greedy, beam or nucleus.")] = (
        DecoderChoice.greedy
    ),
    student: Annotated[
        Path | None, typer.Option(help="Where the run's student is, if it moved.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 128,
    beams: Annotated[int, typer.Option(min=1, help="Hypotheses of beam search.")] = 5,
    top_p: Annotated[float, typer.Option(help="Probability mass of nucleus sampling.")] = 0.9,
    temperature: Annotated[float, typer.Option(help="Of nucleus sampling.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of nucleus sampling.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions at a time.")] = 8,
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode images.")] = 0,
) -> None:
    """Answer the first question of every record; run again to go on after an interruption.

    A sampled answer depends on the seed and its own record alone, not on the batch.
    """
    from ..trainer.quiet import quiet_libraries

    quiet_libraries()
    from .answer_bar import answer_bar
    from .decoding import Decoder
    from .generate import generate as answer
    from .source import find_source

    how = Decoder(
        name=decoder.value,
        max_new_tokens=max_new_tokens,
        beams=beams,
        top_p=top_p,
        temperature=temperature,
        seed=seed,
    )
    found = find_source(source, student)
    if found.unfinished:
        typer.echo(found.unfinished, err=True)
    with answer_bar() as bar:
        done = answer(
            found,
            manifest,
            images,
            out,
            how,
            batch_size=batch_size,
            workers=workers,
            progress=bar,
        )
    typer.echo(f"answers  {out}: {done.answered} new, {done.reused} from before")
    for record, reason in done.unreadable[:10]:
        typer.echo(f"no answer to {record!r}: {reason}", err=True)
    if done.unreadable:
        typer.echo(
            f"{len(done.unreadable)} of {done.records} records could not be read; "
            "score the others with --allow-missing",
            err=True,
        )
        raise typer.Exit(1)


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
