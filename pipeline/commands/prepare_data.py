"""`medalign data prepare`, and the group of `medalign data` commands."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from ...runtime import arguments as args
from ...runtime.text import Fact, aligned, plural
from .check_data import check, leakage
from .resume import FAILED, stopping

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from ..datasets.prepare import Prepared

_COLUMNS: Final = ("records", "open", "closed", "images")

data = typer.Typer(no_args_is_help=True, help="Prepare data sets, and check them.")


def _data_sets() -> list[str]:
    from ..datasets.registry import DATA_SETS

    return list(DATA_SETS)


def _no_data_set(name: str) -> str:
    known = _data_sets()
    return "" if name in known else args.unknown("data set", name, known)


@data.command("prepare")
def prepare_command(
    name: Annotated[
        str,
        args.argument(
            "slake, vqa-rad, pathvqa, omnimedvqa, iu-xray-vqa, iu-xray-report or mimic-cxr-report.",
            _no_data_set,
            known=_data_sets,
        ),
    ],
    source: Annotated[
        Path,
        args.argument("Folder of the downloaded set, unpacked.", args.no_folder, metavar="SRC"),
    ],
    out: args.OutFolder,
    images: Annotated[
        Path | None,
        args.option(
            "Folder of the images.", problem=args.no_folder, show_default="where the set has them"
        ),
    ] = None,
    seed: args.Seed = 0,
    val_fraction: Annotated[
        float | None, args.option("Share of val in a cut.", min=0, max=1, show_default="the set's")
    ] = None,
    test_fraction: Annotated[
        float | None, args.option("Share of test in a cut.", min=0, max=1, show_default="the set's")
    ] = None,
    choose: Annotated[
        list[str] | None,
        args.option(
            "A choice that the set offers, as language=all; repeatable.",
            problem=args.no_assignment,
            metavar="KEY=VALUE",
        ),
    ] = None,
    overwrite: args.Overwrite = False,
) -> None:
    """Turn a downloaded data set into manifests, and report what it holds.

    Images are copied out of Parquet files only; others stay where they are.
    After an interruption, run the same command again.
    """
    choices = _choices(choose or ())
    from rich.console import Console

    from ...runtime.progress import ConsoleProgress
    from ..datasets.prepare import PrepareOptions, prepare
    from ..datasets.registry import find_data_set

    settings = PrepareOptions(
        images=images,
        seed=seed,
        val_fraction=val_fraction,
        test_fraction=test_fraction,
        choices=choices,
        overwrite=overwrite,
    )
    with stopping(lambda: f"stopped; whole files in {out} stay, run the same command again"):
        prepared = prepare(
            find_data_set(name), source, out, settings, ConsoleProgress(unit="items")
        )
    show(prepared, Console())
    if prepared.problems:
        raise typer.Exit(FAILED)


data.command("check")(check)
data.command("leakage")(leakage)


def _choices(words: Sequence[str]) -> dict[str, str]:
    choices = dict[str, str]()
    for word in words:
        key, _, value = word.partition("=")
        if key in choices:
            raise args.ArgumentError(f"--choose {key} is given more than once; give it once")
        choices[key] = value
    return choices


def show(prepared: "Prepared", console: "Console") -> None:
    """Print counts beside the published ones, remarks, and the next commands."""
    report = prepared.report
    console.print(_table(report), markup=False)
    for line in aligned(_facts(prepared)):
        # A name that is no UTF-8 has half characters, which no terminal takes.
        printable = line.encode(errors="backslashreplace").decode()
        console.print(printable, markup=False, highlight=False, soft_wrap=True)


def _table(report: Mapping[str, Any]) -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE, title=report["title"], title_justify="left")
    table.add_column("split")
    table.add_column("counts")
    for name in _COLUMNS:
        table.add_column(name, justify="right")
    published = report["published"]
    splits = [*report["counts"], *(split for paper in published for split in paper["counts"])]
    for split in dict.fromkeys(splits):
        counts = report["counts"].get(split, {})
        table.add_row(split, "found", *(_number(counts.get(name, 0)) for name in _COLUMNS))
        for paper in published:
            if split in paper["counts"]:
                table.add_row("", paper["name"], *_cells(paper, split), style="dim")
    return table


def _cells(published: Mapping[str, Any], split: str) -> Iterator[str]:
    for name in _COLUMNS:
        count = published["counts"][split].get(name)
        difference = published["found_minus_published"][split].get(name)
        marked = f" ({difference:+,})" if difference else ""
        yield "" if count is None else f"{_number(count)}{marked}"


def _number(count: int) -> str:
    return f"{count:,}"


def _facts(prepared: "Prepared") -> Iterator[Fact]:
    report, out = prepared.report, prepared.out
    yield "found", f"{report['made_from']['layout']} in {report['folder']}"
    if any(any(d.values()) for e in report["published"] for d in _differing(e)):
        yield "published", "differs where a number in brackets stands: found minus published"
    yield from _split_facts(report["splits"])
    yield from _left_out_facts(report["left_out"])
    yield from _duplicate_facts(report)
    yield "licence", f"{report['licence']['name']}: {report['licence']['terms']}"
    if len(records := report["licence"]["records"]) > 1:
        yield "", ", ".join(f"{count:,} {name}" for name, count in records.items())
    yield from _next_steps(prepared, out)


def _differing(published: Mapping[str, Any]) -> list[Mapping[str, int]]:
    return list(published["found_minus_published"].values())


def _split_facts(splits: Mapping[str, Any]) -> Iterator[Fact]:
    yield "splits", splits["rule"]
    if cut := splits["cut"]:
        shares = ", ".join(f"{name} {share:g}" for name, share in cut["fractions"].items())
        what = "val out of train" if cut["of"] == "train" else "all"
        groups = plural(cut["groups"], "group")
        yield "", f"cut {what} with seed {cut['seed']}, {groups}: {shares}"
        if cut["of"] == "train":
            yield "", "published counts of train are compared with train and val together"
    if splits["absent"]:
        yield "", f"no records for {', '.join(splits['absent'])}"


def _left_out_facts(left_out: Mapping[str, Any]) -> Iterator[Fact]:
    for reason, count in left_out["by_rule"].items():
        yield "by rule", f"{count:,} left out: {reason}"
    for reason, listed in left_out["unusable"].items():
        images = f" ({plural(listed['images'], 'image')})" if "images" in listed else ""
        yield "LEFT OUT", f"{listed['count']:,} unusable: {reason}{images}"
        yield "", f"first: {'; '.join(listed['first'][:3])}"


def _duplicate_facts(report: Mapping[str, Any]) -> Iterator[Fact]:
    duplicates = report["duplicates"]
    words = {
        "same_in_a_split": "image, question and answer as before in the same split",
        "same_across_splits": "image, question and answer as in another split",
        "contradictions": "image and question as before, but another answer",
    }
    for name, what in words.items():
        if count := duplicates[name]["count"]:
            yield "repeated", f"{count:,} with {what}; kept"
    if count := report["ids"]["repeated"]["count"]:
        were = "was" if count == 1 else "were"
        yield "ids", f"{count:,} {were} used before and got a number at the end"


def _next_steps(prepared: "Prepared", out: Path) -> Iterator[Fact]:
    states = {
        "written": "written",
        "unchanged": "there already, nothing changed",
        "replaced": "written anew, over an earlier run",
    }
    names = ", ".join((*prepared.report["outputs"], "report.json"))
    yield "output", f"{out}: {names} ({states[prepared.state]})"
    first = next(iter(prepared.report["outputs"]))
    images = shlex.quote(str(prepared.images))
    manifest = shlex.quote(str(out / first))
    held_out = [shlex.quote(str(out / name)) for name in prepared.report["outputs"]][1:]
    if prepared.report["splits"]["cut"] and held_out:
        yield "compare", f"medalign data leakage {manifest} {' '.join(held_out)} --images {images}"
    yield "next", f"medalign cache build {manifest} --images {images} \\"
    yield "", "  --expert unimed-l --weights WEIGHTS --out CACHE"
