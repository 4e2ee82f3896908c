"""Prepare a data set: find it, read it, cut it, write manifests and a report."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..manifest import ManifestError, resolve_image
from ..progress import NoProgress, Progress
from ..report import plural
from .dataset import DataSet, DataSetError, Source
from .earlier import Earlier
from .images_link import LINK, link_images
from .layout import files_of, find_layout, image_folder
from .outputs import Draft, digest_of
from .record import content_id, line_of, problem_of, record_of
from .report import REPORT, Facts, report_of, report_text
from .sample import SPLITS, Item, LeftOut, Sample, Split
from .split import cut_samples
from .tally import LeftOuts, Listed, Tally


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
    make_folder(out)
    earlier = Earlier.read(out, overwrite=asked.overwrite)
    earlier.check_source(made_from)
    source = Source(
        root=root,
        layout=layout,
        images=inside or out / LINK,
        progress=progress or NoProgress(),
    )
    left_out = LeftOuts()
    samples = list(_usable(data_set.read(source, choices), source.images, left_out))
    if not samples:
        raise DataSetError(_nothing_usable(root, left_out))
    wanted = _wanted(data_set, samples, asked)
    cut = cut_samples(samples, data_set.fractions, wanted, asked.seed)
    facts = Facts(
        data_set=data_set,
        root=root,
        images=source.images,
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


def _usable(items: Iterable[Item], images: Path, left_out: LeftOuts) -> Iterator[Sample]:
    looked = dict[str, str | None]()
    for item in items:
        if isinstance(item, LeftOut):
            left_out.add(item)
            continue
        if problem := problem_of(item):
            left_out.add(LeftOut(where=item.where, reason=problem))
            continue
        for path in item.images:
            if path not in looked:
                looked[path] = _image_problem(images, path)
        wrong = next((path for path in item.images if looked[path]), None)
        if wrong is None:
            yield item
        else:
            left_out.add(LeftOut(where=f"{item.where}: {wrong}", reason=str(looked[wrong])))


def _image_problem(images: Path, path: str) -> str | None:
    """Return why training could not open an image; it is not decoded."""
    try:
        there = resolve_image(images, path).is_file()
    except ManifestError:
        return "its image leads out of the image folder through a link"
    return None if there else "its image is not there"


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
        tally, repeated, used = Tally(), Listed(), dict[str, int]()
        for sample in samples:
            assert sample.split is not None
            id_ = _id(facts.data_set.name, sample, used, repeated)
            record = record_of(sample, id_=id_, split=sample.split, licence=facts.data_set.licence)
            drafts[sample.split].write(line_of(record))
            tally.add(sample, sample.split, id_, record["licence"])
        for draft in drafts.values():
            draft.finish()
        outputs = {draft.path.name: draft.sha256 for draft in drafts.values()}
        report = report_of(facts, tally, repeated, outputs)
        final = stack.enter_context(Draft(out / REPORT))
        final.write(report_text(report))
        state = earlier.check_outputs({**outputs, REPORT: final.sha256})
        if state != "unchanged":
            earlier.remove_all_but(outputs)
            for draft in (*drafts.values(), final):  # the report last: it vouches for the others
                draft.place()
    images = link_images(out, facts.images)
    return Prepared(out=out, images=images, report=report, state=state)


def _id(name: str, sample: Sample, used: dict[str, int], repeated: Listed) -> str:
    """Return an id that no record has yet: the second of one id ends in _2, and so on."""
    wanted = f"{name}_{content_id(sample) if sample.id is None else sample.id}"
    used[wanted] = count = used.get(wanted, 0) + 1
    if count == 1:
        return wanted
    unique = f"{wanted}_{count}"
    while unique in used:
        count += 1
        unique = f"{wanted}_{count}"
    used[unique] = 1
    if sample.id is not None:
        repeated.add(unique)
    return unique


def _nothing_usable(root: Path, left_out: LeftOuts) -> str:
    reasons = [
        f"{plural(listed.count, 'item')}: {why} ({listed.first[0]})"
        for why, listed in left_out.unusable.items()
    ]
    reasons += [f"{plural(count, 'item')}: {why}" for why, count in left_out.by_rule.items()]
    return f"{root}: no sample can be used" + "".join(f"\n  {each}" for each in reasons)
