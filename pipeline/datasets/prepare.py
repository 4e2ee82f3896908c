"""Prepare a data set: find it, read it, cut it, write manifests and a report."""

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ..progress import NoProgress, Progress
from ..records import shorten
from ..report import plural
from .dataset import DataSet, DataSetError, Source
from .earlier import Earlier
from .ids import Ids
from .images_link import LINK, drop_link, leads, link_images
from .layout import files_of, find_layout, image_folder
from .leftovers import remove_drafts, remove_images
from .outputs import Draft, digest_of, read_contents
from .record import line_of, record_of
from .report import REPORT, Facts, report_of, report_text
from .sample import SPLITS, Sample, Split
from .split import cut_samples
from .tally import LeftOuts, Tally
from .usable import Usable


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Hold what a user asked for.

    Attributes:
        images: folder of the images, where they do not lie with the set.
        seed: of the cut.
        val_fraction: share of val in a cut; also cuts val from train where the set has none.
        test_fraction: share of test in a cut.
        choices: the set's own choices that were made.
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
    data_set: DataSet, folder: Path, out: Path, asked: Asked, progress: Progress | None = None
) -> Prepared:
    """Write `train.jsonl`, `val.jsonl`, `test.jsonl` and `report.json` to `out`.

    Args:
        data_set: which set.
        folder: the set as it was downloaded and unpacked, or the folder around it.
        out: the output folder; made where it is missing.
        asked: what the user asked for.
        progress: told by readers that take long.

    Raises:
        DataSetError: the set is not there or cannot be read, nothing of it can be used, or `out`
            holds something else already.
    """
    choices = chosen(data_set, asked.choices)
    root, layout = find_layout(data_set, folder)
    inside = image_folder(data_set, root, layout, asked.images)
    made_from = {
        "data_set": data_set.name,
        "layout": layout.name,
        "options": {
            "seed": asked.seed,
            "val_fraction": asked.val_fraction,
            "test_fraction": asked.test_fraction,
            **choices,
        },
        "files": {
            path.relative_to(root).as_posix(): digest_of(path) for path in files_of(root, layout)
        },
    }
    earlier = _earlier(out, made_from, inside, asked)
    if inside is None and asked.overwrite:
        drop_link(out)
    progress, images = progress or NoProgress(), inside or out / LINK
    usable, left_out = Usable(images, private=data_set.private), LeftOuts()
    source = Source(root=root, layout=layout, images=images, progress=progress, usable=usable)
    samples = usable.sort(data_set.read(source, choices), left_out, progress)
    if not samples:
        raise DataSetError(f"{root}: no sample can be used{left_out.told()}")
    wanted = _wanted(data_set, samples, asked)
    contents = partial(read_contents, images, progress)
    cut = cut_samples(samples, data_set.fractions, wanted, asked.seed, contents)
    facts = Facts(
        data_set=data_set,
        root=root,
        images=images,
        written=inside is None,
        made_from=made_from,
        choices=choices,
        cut=cut,
        left_out=left_out,
    )
    return _write(facts, out, earlier)


def chosen(data_set: DataSet, asked: Mapping[str, str]) -> dict[str, str]:
    """Return the value of every choice of a set.

    Raises:
        DataSetError: something was chosen that cannot be.
    """
    known = {choice.name: choice for choice in data_set.choices}
    for name, value in asked.items():
        if name not in known:
            names = f"choices are {', '.join(known)}" if known else "it has no choices"
            raise DataSetError(f"{data_set.name} has no choice {name!r}; {names}")
        if known[name].values and value not in known[name].values:
            values = ", ".join(known[name].values)
            raise DataSetError(f"{data_set.name}: {name} is {value!r}, must be one of {values}")
    return {name: asked.get(name, choice.default) for name, choice in known.items()}


def make_folder(out: Path) -> None:
    """Make the output folder.

    Raises:
        DataSetError: there is a file of that name.
    """
    if out.exists() and not out.is_dir():
        raise DataSetError(f"{out}: is a file; --out names the folder to write to")
    out.mkdir(parents=True, exist_ok=True)


def _earlier(out: Path, made_from: Mapping[str, Any], images: Path | None, asked: Asked) -> Earlier:
    """Return what is in the output folder, sure that this run may go on with it.

    Raises:
        DataSetError: it may not.
    """
    make_folder(out)
    earlier = Earlier.read(out, overwrite=asked.overwrite)
    earlier.check_source(made_from, images)
    # A run that was killed may have put some of its manifests in place, but not its report.
    if not remove_drafts(out):
        earlier.check_untouched()
    return earlier


def _wanted(data_set: DataSet, samples: Iterable[Sample], asked: Asked) -> dict[Split, float]:
    """Return the fractions that were asked for.

    Raises:
        DataSetError: the set has that split already; its test is what others report on.
    """
    wanted: dict[Split, float] = {}
    if asked.val_fraction is not None:
        wanted["val"] = asked.val_fraction
    if asked.test_fraction is not None:
        wanted["test"] = asked.test_fraction
    official = {sample.split for sample in samples} - {None}
    for split in wanted:
        if split in official or (split == "test" and official):
            raise DataSetError(
                f"{data_set.name} comes with its own splits; leave --{split}-fraction away"
            )
    if sum({**data_set.fractions, **wanted}.values()) >= 1:
        raise DataSetError("the fractions of val and test leave nothing to train on")
    return wanted


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
        for draft in drafts.values():
            draft.finish()
        outputs = {draft.path.name: draft.sha256 for draft in drafts.values()}
        report = report_of(facts, tally, ids.repeated, outputs)
        final = stack.enter_context(Draft(out / REPORT))
        final.write(report_text(report))
        final.finish()
        state = earlier.check_outputs({**outputs, REPORT: final.sha256})
        if state != "unchanged":
            _check_kept(facts, earlier, ids)
            earlier.remove_all_but(outputs)
            for draft in (*drafts.values(), final):  # the report last: it vouches for the others
                draft.place()
    if earlier.overwrite and facts.written:
        remove_images(out, {path for each in samples for path in each.images})
    elif earlier.overwrite and not leads(out / LINK, facts.images):
        remove_images(out, ())
    images = link_images(out, facts.images)
    return Prepared(out=out, images=images, report=report, state=state)


def _check_kept(facts: Facts, earlier: Earlier, ids: Ids) -> None:
    """Refuse to take records away that an earlier run made.

    Raises:
        DataSetError: with what this run left out.
    """
    if lost := list(earlier.lost(ids)):
        raise DataSetError(
            f"{earlier.out}: {plural(len(lost), 'record')} that an earlier run made cannot be made "
            f"now, {shorten(lost[0])} first; put back what is missing, name another --out, or pass "
            f"--overwrite to lose them{facts.left_out.told()}"
        )
