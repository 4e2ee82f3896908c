"""`medalign data prepare`."""

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from ...runtime.text import aligned, plural
from .arguments import FAILED, INTERRUPTED
from .check_data import check, leakage

if TYPE_CHECKING:
    from ..datasets.prepare import Prepared

_COLUMNS = ("records", "open", "closed", "images")


def show(prepared: "Prepared", console: Console) -> None:
    """Print counts beside the published ones, what was noticed, and what to run next."""
    report = prepared.report
    console.print(_table(report), markup=False)
    for line in aligned(_facts(prepared)):
        # A name that is no UTF-8 has half characters, which no terminal takes.
        told = line.encode(errors="backslashreplace").decode()
        console.print(told, markup=False, highlight=False, soft_wrap=True)


def _table(report: Mapping[str, Any]) -> Table:
    table = Table(box=box.SIMPLE, title=report["title"], title_justify="left")
    table.add_column("split")
    table.add_column("counts")
    for name in _COLUMNS:
        table.add_column(name, justify="right")
    published = report["published"]
    named = list(report["counts"]) + [
        split for each in published for split in each["counts"] if split not in report["counts"]
    ]
    for split in dict.fromkeys(named):
        found = report["counts"].get(split)
        table.add_row(split, "found", *(_number((found or {}).get(n, 0)) for n in _COLUMNS))
        for each in published:
            if split in each["counts"]:
                table.add_row("", each["name"], *_cells(each, split), style="dim")
    return table


def _cells(published: Mapping[str, Any], split: str) -> Iterator[str]:
    for name in _COLUMNS:
        count = published["counts"][split].get(name)
        difference = published["found_minus_published"][split].get(name)
        marked = f" ({difference:+,})" if difference else ""
        yield "" if count is None else f"{_number(count)}{marked}"


def _number(count: int) -> str:
    return f"{count:,}"


def _facts(prepared: "Prepared") -> Iterator[tuple[str, str]]:
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


def _split_facts(splits: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
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


def _left_out_facts(left_out: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for reason, count in left_out["by_rule"].items():
        yield "by rule", f"{count:,} left out: {reason}"
    for reason, listed in left_out["unusable"].items():
        images = f" ({plural(listed['images'], 'image')})" if "images" in listed else ""
        yield "LEFT OUT", f"{listed['count']:,} unusable: {reason}{images}"
        yield "", f"first: {'; '.join(listed['first'][:3])}"


def _duplicate_facts(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    found = report["duplicates"]
    words = {
        "same_in_a_split": "image, question and answer as before in the same split",
        "same_across_splits": "image, question and answer as in another split",
        "contradictions": "image and question as before, but another answer",
    }
    for name, what in words.items():
        if count := found[name]["count"]:
            yield "repeated", f"{count:,} with {what}; kept"
    if count := report["ids"]["repeated"]["count"]:
        were = "was" if count == 1 else "were"
        yield "ids", f"{count:,} {were} used before and got a number at the end"


def _next_steps(prepared: "Prepared", out: Path) -> Iterator[tuple[str, str]]:
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


_NAMES = "slake, vqa-rad, pathvqa, omnimedvqa, iu-xray-vqa, iu-xray-report, mimic-cxr-report"


def prepare_command(
    name: Annotated[str, typer.Argument(help=f"{_NAMES}.", show_default=False)],
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SRC", help="Folder of the downloaded set, unpacked.", show_default=False
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder to write to.", show_default=False)],
    images: Annotated[
        Path | None,
        typer.Option(help="Folder of the images.", show_default="where the set has them"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the cut, where the set has no splits.")] = 0,
    val_fraction: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Share of val in a cut.", show_default="the set's"),
    ] = None,
    test_fraction: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Share of test in a cut.", show_default="the set's"),
    ] = None,
    choose: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE", help="A choice of the set, as language=all.", show_default=False
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what another run left in --out.")
    ] = False,
) -> None:
    """Turn a downloaded data set into manifests, with a report of what was found.

    No image is copied, except out of Parquet files. Run the same command again
    after any interruption.
    """
    from rich.console import Console

    from ...runtime.progress import ConsoleProgress
    from ...runtime.signals import interruptible
    from ..datasets.definition import DataSetError
    from ..datasets.prepare import Asked, prepare
    from ..datasets.registry import find_data_set

    data_set = find_data_set(name)
    choices = dict[str, str]()
    for word in choose or ():
        key, equals, value = word.partition("=")
        if not equals:
            raise DataSetError(f"--choose {word!r} must be KEY=VALUE")
        if key in choices:
            raise DataSetError(f"--choose {key} is given more than once")
        choices[key] = value
    asked = Asked(
        images=images,
        seed=seed,
        val_fraction=val_fraction,
        test_fraction=test_fraction,
        choices=choices,
        overwrite=overwrite,
    )
    try:
        with interruptible():
            prepared = prepare(data_set, source, out, asked, ConsoleProgress(unit="items"))
    except KeyboardInterrupt:
        typer.echo(f"stopped; whole files in {out} stay, run the same command again", err=True)
        raise typer.Exit(INTERRUPTED) from None
    show(prepared, Console())
    if prepared.problems:
        raise typer.Exit(FAILED)


data = typer.Typer(no_args_is_help=True, help="Prepare data sets, and look them over.")

data.command("prepare")(prepare_command)
data.command("check")(check)
data.command("leakage")(leakage)
