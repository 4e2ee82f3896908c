"""Prepare a data set: find it, read it, cut it, write manifests and a report."""

import contextlib
import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from ...runtime.files import Draft, drafted, is_held, put_link, sha256_file
from ...runtime.progress import NoProgress, Progress
from ...runtime.text import plural
from ..manifest import shorten
from .definition import (
    SPLITS,
    DataSet,
    DataSetError,
    Sample,
    Source,
    Split,
    files_of,
    find_layout,
    image_folder,
)
from .outputs import OUTPUT_NAMES, Earlier, read_contents
from .prepare_report import REPORT, Facts, LeftOuts, Tally, report_of, report_text
from .records import Ids, Usable, line_of, record_of
from .split import cut_samples

LINK = "images"
"""Its name in the output folder; images out of Parquet are written into a folder of this name."""

_IMAGE: Final = re.compile(r"[0-9a-f]{64}\.[a-z0-9]{1,5}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareOptions:
    """Hold how to prepare a data set.

    Attributes:
        images: folder of the images, where they do not lie with the set's files.
        seed: of the cut.
        val_fraction: share of val in a cut; also cuts val from train where the set has none.
        test_fraction: share of test in a cut.
        choices: the set's own choices, by name; the others keep their defaults.
        overwrite: replace what another run left in the output folder.
    """

    images: Path | None = None
    seed: int = 0
    val_fraction: float | None = None
    test_fraction: float | None = None
    choices: Mapping[str, str] = field(default_factory=dict)
    overwrite: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """Hold what a run did.

    Attributes:
        out: the output folder.
        images: what to pass as `--images` to other commands.
        report: what `report.json` says.
        state: "written", "unchanged" (all was there already) or "replaced".
    """

    out: Path
    images: Path
    report: Mapping[str, Any]
    state: str

    @property
    def problems(self) -> int:
        """How many items of the source could not be used."""
        return sum(reason["count"] for reason in self.report["left_out"]["unusable"].values())


def prepare(
    data_set: DataSet,
    folder: Path,
    out: Path,
    options: PrepareOptions,
    progress: Progress | None = None,
) -> Prepared:
    """Write `train.jsonl`, `val.jsonl`, `test.jsonl` and `report.json` to `out`.

    Args:
        data_set: which set.
        folder: the set as it was downloaded and unpacked, or the folder around it.
        out: the output folder; made where it is missing.
        options: how to prepare it.
        progress: shows readers that take long.

    Raises:
        DataSetError: the set is not there or cannot be read, nothing of it can be used, or `out`
            holds something else already.
    """
    choices = _values_of_choices(data_set, options.choices)
    root, layout = find_layout(data_set, folder)
    source_images = image_folder(data_set, root, layout, options.images)
    made_from = {
        "data_set": data_set.name,
        "layout": layout.name,
        "options": {
            "seed": options.seed,
            "val_fraction": options.val_fraction,
            "test_fraction": options.test_fraction,
            **choices,
        },
        "files": {
            path.relative_to(root).as_posix(): sha256_file(path) for path in files_of(root, layout)
        },
    }
    earlier = _earlier(out, made_from, source_images, options)
    if source_images is None and options.overwrite and (out / LINK).is_symlink():
        (out / LINK).unlink()  # else images would be written into the folder of another set
    progress, images = progress or NoProgress(), source_images or out / LINK
    usable, left_out = Usable(images, private=data_set.private), LeftOuts()
    source = Source(root=root, layout=layout, images=images, progress=progress, usable=usable)
    samples = usable.sort(data_set.read(source, choices), left_out, progress)
    if not samples:
        raise DataSetError(f"{root}: no sample can be used{left_out.listed()}")
    fractions = _fractions(data_set, samples, options)
    contents = partial(read_contents, images, progress)
    cut = cut_samples(samples, data_set.fractions, fractions, options.seed, contents)
    facts = Facts(
        data_set=data_set,
        root=root,
        images=images,
        written=source_images is None,
        made_from=made_from,
        choices=choices,
        cut=cut,
        left_out=left_out,
    )
    return _write(facts, out, earlier)


def _values_of_choices(data_set: DataSet, choices: Mapping[str, str]) -> dict[str, str]:
    """Return the value of every choice of a set.

    Raises:
        DataSetError: the set has no such choice, or the choice no such value.
    """
    known = {choice.name: choice for choice in data_set.choices}
    for name, value in choices.items():
        if name not in known:
            names = f"choices are {', '.join(known)}" if known else "it has no choices"
            raise DataSetError(f"{data_set.name} has no choice {name!r}; {names}")
        if known[name].values and value not in known[name].values:
            values = ", ".join(known[name].values)
            raise DataSetError(f"{data_set.name}: {name} is {value!r}, must be one of {values}")
    return {name: choices.get(name, choice.default) for name, choice in known.items()}


def _earlier(
    out: Path, made_from: Mapping[str, Any], images: Path | None, options: PrepareOptions
) -> Earlier:
    """Make the output folder and return what is in it, certain that this run may write there.

    Raises:
        DataSetError: it may not, or the folder is a file.
    """
    if out.exists() and not out.is_dir():
        raise DataSetError(f"{out}: is a file; --out names the folder to write to")
    out.mkdir(parents=True, exist_ok=True)
    earlier = Earlier.read(out, overwrite=options.overwrite)
    earlier.check_source(made_from, images)
    # A run that was killed may have put some of its manifests in place, but not its report.
    if not _remove_drafts(out):
        earlier.check_untouched()
    return earlier


def _fractions(
    data_set: DataSet, samples: Iterable[Sample], options: PrepareOptions
) -> dict[Split, float]:
    """Return the fractions of the options.

    Raises:
        DataSetError: the set has that split already; its test is what others report on.
    """
    shares: dict[Split, float | None] = {"val": options.val_fraction, "test": options.test_fraction}
    fractions = {split: share for split, share in shares.items() if share is not None}
    official = {sample.split for sample in samples} - {None}
    for split in fractions:
        if split in official or (split == "test" and official):
            raise DataSetError(
                f"{data_set.name} comes with its own splits; leave --{split}-fraction away"
            )
    if sum({**data_set.fractions, **fractions}.values()) >= 1:
        raise DataSetError("the fractions of val and test leave nothing to train on")
    return fractions


def _write(facts: Facts, out: Path, earlier: Earlier) -> Prepared:
    samples = facts.cut.samples
    with ExitStack() as stack:
        drafts = {
            split: stack.enter_context(Draft(out / f"{split}.jsonl"))
            for split in SPLITS
            if any(sample.split == split for sample in samples)
        }
        tally, ids = Tally(), Ids(facts.data_set.name)
        for sample in samples:
            assert sample.split is not None
            id_ = ids.of(sample)
            record = record_of(sample, id_=id_, split=sample.split, licence=facts.data_set.licence)
            drafts[sample.split].write(line_of(record))
            tally.add(sample, sample.split, id_, record["licence"])
        # All are on disk before the first is placed: a full disk leaves the earlier run whole.
        for draft in drafts.values():
            draft.finish()
        outputs = {draft.path.name: draft.sha256 for draft in drafts.values()}
        report = report_of(facts, tally, ids.repeated, outputs)
        final = stack.enter_context(Draft(out / REPORT))
        final.write(report_text(report))
        final.finish()
        state = earlier.check_outputs({**outputs, REPORT: final.sha256})
        if state != "unchanged":
            _refuse_losses(facts, earlier, ids)
            earlier.remove_all_but(outputs)
            for draft in (*drafts.values(), final):  # the report last: it vouches for the others
                draft.place()
    if earlier.overwrite and facts.written:
        _remove_images(out, {path for sample in samples for path in sample.images})
    elif earlier.overwrite and not _leads(out / LINK, facts.images):
        _remove_images(out, ())
    images = _link_images(out, facts.images)
    return Prepared(out=out, images=images, report=report, state=state)


def _refuse_losses(facts: Facts, earlier: Earlier, ids: Ids) -> None:
    """Refuse to take records away that an earlier run made.

    Raises:
        DataSetError: with what this run left out.
    """
    if lost := list(earlier.lost(ids)):
        raise DataSetError(
            f"{earlier.out}: {plural(len(lost), 'record')} that an earlier run made cannot be made "
            f"now, {shorten(lost[0])} first; put back what is missing, name another --out, or pass "
            f"--overwrite to lose them{facts.left_out.listed()}"
        )


def _link_images(out: Path, images: Path) -> Path:
    """Let `out/images` lead to the image folder; return what to pass as `--images`.

    A link that leads elsewhere is replaced. Where something else has that name already, or the
    file system knows no links, the image folder itself is returned.
    """
    link = out / LINK
    if _leads(link, images):
        return link
    if link.is_symlink() or not link.exists():
        with contextlib.suppress(OSError):
            put_link(link, images.absolute())
    return link if _leads(link, images) else images


def _leads(link: Path, images: Path) -> bool:
    """Return whether a link, or a folder of its name, is the image folder."""
    return link.is_dir() and link.samefile(images)


def _remove_drafts(out: Path) -> bool:
    """Remove drafts that no living run holds; return whether a manifest's was among them."""
    manifests = False
    for path in list(out.iterdir()):
        name = drafted(path.name)
        if path.is_symlink():
            if name == LINK:
                path.unlink(missing_ok=True)
        elif name in OUTPUT_NAMES and not is_held(path):
            path.unlink(missing_ok=True)
            manifests = True
    for path in list(_in_images(out, drafted)):
        if not is_held(path):
            path.unlink(missing_ok=True)
    return manifests


def _remove_images(out: Path, named: Container[str]) -> None:
    """Remove images that a run wrote out of Parquet files and no manifest names any more.

    Args:
        out: the output folder.
        named: paths below `out/images` that stay.
    """
    for path in list(_in_images(out, str)):
        if path.relative_to(out / LINK).as_posix() not in named:
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # not empty yet, or never
                path.parent.rmdir()
                path.parent.parent.rmdir()


def _in_images(out: Path, name_of: Callable[[str], str]) -> Iterator[Path]:
    """Yield the images under `out/images` that a run wrote, or their drafts with `drafted`."""
    images = out / LINK
    if images.is_symlink() or not images.is_dir():
        return
    for path in images.glob("[0-9a-f][0-9a-f]/*"):
        name = name_of(path.name)
        if _IMAGE.fullmatch(name) and name[:2] == path.parent.name:
            yield path
