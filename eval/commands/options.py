"""Options that several `medalign eval` commands share, and the checks of them."""

import enum
import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from ...runtime import arguments as args

if TYPE_CHECKING:
    from ..metric_models.locate import InstrumentPaths

ModelPaths = Callable[[], "InstrumentPaths"]
"""Makes the paths of the models; not before the arguments are checked, as it imports torch."""

MODELS: Final = "Models of report metrics (nothing is downloaded)"
ATTENTION: Final = "Attention overlays"
"""Panels of the help."""


class TaskName(enum.StrEnum):
    """What can be scored."""

    vqa = "vqa"
    report = "report"


def _metrics_of(task: TaskName) -> tuple[str, ...]:
    from ..metrics.definitions import REPORT_METRICS, VQA_METRICS

    return VQA_METRICS if task is TaskName.vqa else REPORT_METRICS


def _complete_metrics(incomplete: str) -> list[str]:
    """Complete the last name of NAME,NAME."""
    names, comma, last = incomplete.rpartition(",")
    known = dict.fromkeys(name for task in TaskName for name in _metrics_of(task))
    return [f"{names}{comma}{name}" for name in known if name.startswith(last)]


def metric_names(text: str | None, *tasks: TaskName) -> list[str]:
    """Return the names in `--metrics`, none for all.

    Args:
        text: of the option.
        tasks: whose metrics may be named; all tasks if there are none.

    Raises:
        ArgumentError: it names nothing, or a metric that these tasks lack.
    """
    if text is None:
        return []
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise args.ArgumentError(
            f"--metrics {text!r} names no metric: give NAME,... or leave it out, for all"
        )
    known = [name for task in tasks or TaskName for name in _metrics_of(task)]
    for name in names:
        if name not in known:
            noun = f"metric of task {' or '.join(tasks or TaskName)}"
            raise args.ArgumentError(f"--metrics {name}: {args.unknown(noun, name, known)}")
    return names


def keep_inputs(out: Path | None, use: str, *inputs: Path) -> None:
    """Refuse to write over a file that is read, by whatever name.

    Raises:
        ArgumentError: `out` is one of the inputs.
    """
    if out is not None and out.resolve() in {path.resolve() for path in inputs}:
        raise args.ArgumentError(f"--out {out}: would overwrite what is {use}; choose another file")


def refuse_repeats(name: str, paths: Sequence[Path]) -> None:
    """Refuse a file or folder that is given twice, by whatever name.

    Raises:
        ArgumentError: names the second one.
    """
    known = set[Path]()
    for path in paths:
        if path.resolve() in known:
            raise args.ArgumentError(f"{name} {path}: is given twice; give it once")
        known.add(path.resolve())


def print_problems(problems: Sequence[str], output: str) -> None:
    """Print the first problems of a figure or report, and exit with 1 if there is one."""
    for problem in problems[:10]:
        typer.echo(problem, err=True)
    if problems:
        typer.echo(f"{len(problems)} things are missing from the {output}", err=True)
        raise typer.Exit(1)


def print_notes(notes: Iterable[str]) -> None:
    """Print what the user should know of the runs that answer."""
    for note in filter(None, notes):
        typer.echo(note, err=True)


OverlayCache = Annotated[
    str | None,
    args.option(
        "Cache with these images, for the expert's attention.",
        "--cache",
        problem=args.no_store,
        metavar="STORE",
        rich_help_panel=ATTENTION,
    ),
]
OverlayStudent = Annotated[
    Path | None,
    args.option(
        "Folder of the runs' student, if it moved.",
        "--student",
        problem=args.no_student,
        rich_help_panel=ATTENTION,
    ),
]
OverlayLayer = Annotated[
    int | None,
    args.option(
        "Layer to read of a student without an adapter; a run has its own.",
        "--layer",
        min=0,
        show_default="that of the runs",
        rich_help_panel=ATTENTION,
    ),
]
TaskOption = Annotated[TaskName, args.option("Short answers, or whole reports.")]
MetricsOption = Annotated[
    str | None,
    args.option(
        "vqa: open, closed, choice, overall, hallucination; report: bleu, rouge_l, meteor, "
        "bertscore, chexbert, radgraph, ratescore.",
        metavar="NAME,...",
        complete=_complete_metrics,
        show_default="all",
    ),
]
AllowMissing = Annotated[
    bool, args.flag("Score unanswered records as empty answers; else refuse.", "--allow-missing")
]
JsonFile = Annotated[bool, args.flag("Print the JSON of the file, not a table.", "--json")]


def _model(help: str, problem: Callable[[str], str], metavar: str) -> Any:  # noqa: A002
    return args.option(help, problem=problem, metavar=metavar, rich_help_panel=MODELS)


def model_paths(
    bertscore: Annotated[
        Path | None, _model("roberta-large, or another model.", args.no_folder, "DIR")
    ] = None,
    bertscore_layer: Annotated[
        int | None,
        args.option(
            "Layer that BERTScore compares.",
            show_default="17 of roberta-large",
            rich_help_panel=MODELS,
        ),
    ] = None,
    chexbert: Annotated[Path | None, _model("chexbert.pth.", args.no_path, "FILE")] = None,
    bert: Annotated[
        Path | None,
        _model(
            "bert-base-uncased: CheXbert's configuration and vocabulary.", args.no_folder, "DIR"
        ),
    ] = None,
    radgraph: Annotated[
        Path | None, _model("radgraph.tar.gz, or the folder with its files.", args.no_path, "FILE")
    ] = None,
    radgraph_bert: Annotated[
        Path | None,
        _model("PubMedBERT: RadGraph's configuration and vocabulary.", args.no_folder, "DIR"),
    ] = None,
    radgraph_annotations: Annotated[
        list[Path] | None,
        _model(
            "Annotations by the package radgraph, JSON, in place of its model; repeatable.",
            args.no_file,
            "FILE",
        ),
    ] = None,
    ratescore_ner: Annotated[
        Path | None, _model("RaTE-NER-Deberta.", args.no_folder, "DIR")
    ] = None,
    ratescore_synonyms: Annotated[
        Path | None, _model("BioLORD-2023-C.", args.no_folder, "DIR")
    ] = None,
) -> "InstrumentPaths":
    """Return where the user has the models; the parameters are the options."""
    from ..metric_models.locate import InstrumentPaths

    return InstrumentPaths(
        bertscore=bertscore,
        bertscore_layer=bertscore_layer,
        chexbert=chexbert,
        bert=bert,
        radgraph=radgraph,
        radgraph_bert=radgraph_bert,
        annotations=tuple(radgraph_annotations or ()),
        ratescore_ner=ratescore_ner,
        ratescore_synonyms=ratescore_synonyms,
    )


def with_model_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of `model_paths` in place of its parameter `paths`.

    Args:
        command: takes `out` and `paths` by name; calling `paths` imports torch.
    """
    signature = inspect.signature(command)
    models = inspect.signature(model_paths).parameters
    own = [parameter for name, parameter in signature.parameters.items() if name != "paths"]
    parameters = [*own, *models.values()]

    @functools.wraps(command)
    def run(**values: Any) -> None:
        paths = {name: values.pop(name) for name in models}
        task = values.get("task")
        if task == "vqa" and any(paths[name] != models[name].default for name in models):
            raise args.ArgumentError(
                "--task vqa has no metric that needs a model; leave out the models of reports"
            )
        annotations = paths["radgraph_annotations"] or ()
        if annotations and (paths["radgraph"] or paths["radgraph_bert"]):
            raise args.ArgumentError(
                "--radgraph-annotations stands in place of RadGraph's model: give it, or "
                "--radgraph and --radgraph-bert, not both"
            )
        keep_inputs(values["out"], "read", *annotations)
        command(**values, paths=functools.partial(model_paths, **paths))

    # Typer makes options of a signature and of type hints, and a function has no other table.
    described: Any = run
    described.__signature__ = signature.replace(parameters=parameters)
    described.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run
