"""Prepare a data set: find it, read it, cut it, write manifests and a report."""

import contextlib
import hashlib
import json
import re
import stat
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from ...runtime.files import Draft, drafted, is_held, put_link, sha256_file
from ...runtime.progress import NoProgress, Progress
from ...runtime.text import plural
from ..manifest import (
    IMAGE_PLACEHOLDER,
    ManifestError,
    check_path,
    read_record,
    resolve_image,
    shorten,
)
from .definition import (
    SPLITS,
    DataSet,
    DataSetError,
    Item,
    LeftOut,
    Sample,
    Source,
    Split,
    files_of,
    find_layout,
    image_folder,
)
from .outputs import OUTPUT_NAMES, Earlier, read_contents
from .prepare_report import REPORT, Facts, LeftOuts, Listed, Tally, report_of, report_text
from .same_text import plain_words
from .split import cut_samples

LINK = "images"
"""Its name in the output folder; images out of Parquet are written into a folder of this name."""


def link_images(out: Path, images: Path) -> Path:
    """Let `out/images` lead to the image folder; return what to pass as `--images`.

    A link that leads elsewhere is replaced. Where something else has that name already, or the
    file system knows no links, the image folder itself is returned.
    """
    link = out / LINK
    if leads(link, images):
        return link
    if link.is_symlink() or not link.exists():
        with contextlib.suppress(OSError):
            put_link(link, images.absolute())
    return link if leads(link, images) else images


def drop_link(out: Path) -> None:
    """Remove the link, so that images are not written into the folder of another set."""
    if (out / LINK).is_symlink():
        (out / LINK).unlink()


def leads(link: Path, images: Path) -> bool:
    """Return whether a link, or a folder of its name, is the image folder."""
    return link.is_dir() and link.samefile(images)


_IMAGE: Final = re.compile(r"[0-9a-f]{64}\.[a-z0-9]{1,5}")


def remove_drafts(out: Path) -> bool:
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


def remove_images(out: Path, kept: Container[str]) -> None:
    """Remove images that a run wrote out of Parquet files and no manifest names any more.

    Args:
        out: the output folder.
        kept: paths below `out/images` that stay.
    """
    for path in list(_in_images(out, str)):
        if path.relative_to(out / LINK).as_posix() not in kept:
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # not empty yet, or never
                path.parent.rmdir()
                path.parent.parent.rmdir()


def _in_images(out: Path, name_of: Callable[[str], str]) -> Iterator[Path]:
    images = out / LINK
    if images.is_symlink() or not images.is_dir():
        return
    for path in images.glob("[0-9a-f][0-9a-f]/*"):
        name = name_of(path.name)
        if _IMAGE.fullmatch(name) and name[:2] == path.parent.name:
            yield path


OPTIONS_PROMPT = " Please choose from the following options: "
"""What MedAlign puts between a question and its options."""


def record_of(sample: Sample, *, id_: str, split: Split, licence: str) -> dict[str, Any]:
    """Return the manifest's record of a sample; fields that it does not have are left away."""
    question, answer = sample.question.strip(), sample.answer.strip()
    if sample.options:
        question += OPTIONS_PROMPT + ", ".join(sample.options)
    placeholders = f"{IMAGE_PLACEHOLDER}\n" * len(sample.images)
    several = len(sample.images) > 1
    record = {
        "id": id_,
        "image": list(sample.images) if several else sample.images[0],
        "conversations": [
            {"from": "human", "value": placeholders + question},
            {"from": "gpt", "value": answer},
        ],
        "answer_type": sample.answer_type,
        "options": list(sample.options) or None,
        # LLaVA-Med's multiple-choice score takes this as it is; the turn from gpt it lower-cases.
        "answer": answer if sample.options else None,
        "report": sample.report,
        "split": split,
        "modality": sample.modality,
        "patient": sample.patient,
        "study": sample.study,
        "mask": sample.mask,
        "licence": sample.licence or licence,
    }
    known = {name: value for name, value in record.items() if value is not None}
    return known | {name: value for name, value in sample.extra.items() if name not in record}


def line_of(record: dict[str, Any]) -> bytes:
    """Return a record as one line of UTF-8 JSON, with its line feed.

    Raises:
        ValueError: a field holds NaN, an infinity or half a character.
    """
    return json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def problem_of(sample: Sample) -> str | None:
    """Return why a sample cannot become a record, or None; never with text of the sample.

    Image paths are not looked at.
    """
    for name, text in (("question", sample.question), ("answer", sample.answer)):
        if not text.strip():
            return f"the {name} is blank"
        if IMAGE_PLACEHOLDER in text:
            return f"the {name} holds {IMAGE_PLACEHOLDER}"
    if len(sample.options) == 1 or not all(option.strip() for option in sample.options):
        return "its options are fewer than two, or blank"
    if len({plain_words(option) for option in sample.options}) < len(sample.options):
        return "two of its options are the same"
    record = record_of(sample, id_=sample.id or "_", split="train", licence="_")
    try:
        line_of(record)
    except UnicodeEncodeError:
        return "a field holds half a character (a lone surrogate)"
    except ValueError:
        return "a field holds NaN or an infinity, which JSON does not know"
    several = len(sample.images) > 1
    found = read_record(record | {"image": ["_"] * len(sample.images) if several else "_"}, 1)
    return "; ".join(found) if isinstance(found, list) else None


def content_id(sample: Sample) -> str:
    """Return an id that follows from what a sample says: 16 hexadecimal digits."""
    said = [*sample.images, sample.question.strip(), sample.answer.strip()]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]


class Ids:
    """Gives every record of a run an id that no other has.

    Attributes:
        repeated: ids of the set that it uses more than once, as they were made unique.
    """

    def __init__(self, name: str) -> None:
        """Take the name of the set, with which every id begins."""
        self._name = name
        self._used = dict[str, int]()
        self.repeated = Listed()

    def __contains__(self, id_: object) -> bool:
        return id_ in self._used

    def of(self, sample: Sample) -> str:
        """Return an id that no record has yet: the second of one id ends in _2, and so on."""
        wanted = f"{self._name}_{content_id(sample) if sample.id is None else sample.id}"
        self._used[wanted] = count = self._used.get(wanted, 0) + 1
        if count == 1:
            return wanted
        unique = f"{wanted}_{count}"
        while unique in self._used:
            count += 1
            unique = f"{wanted}_{count}"
        self._used[unique] = 1
        if sample.id is not None:
            self.repeated.add(unique)
        return unique


LEADS_OUT = "leads out of the image folder through a link"


def file_problem(folder: Path, path: str) -> str | None:
    """Return why nobody could open a file, as the end of a sentence; it is not opened."""
    try:
        there = stat.S_ISREG(resolve_image(folder, path).stat().st_mode)
    except ManifestError:
        return LEADS_OUT
    except (FileNotFoundError, NotADirectoryError):
        there = False
    except OSError as error:  # a name that is too long, a folder that may not be entered
        return f"cannot be looked at: {(error.strerror or 'no reason given').lower()}"
    return None if there else "is not there"


class Usable:
    """Tells samples that training could use from others; looks at each image file once."""

    def __init__(self, images: Path, *, private: bool) -> None:
        """Take the image folder, and whether paths must not be told (they may hold text)."""
        self._images, self._private = images, private
        self._looked: dict[str, str | None] = {}

    def __call__(self, item: Item) -> Item:
        """Return a sample that can be used as it is, anything else as what is left out."""
        item = self._said(item)
        return self._there(item) if isinstance(item, Sample) else item

    def sort(self, items: Iterable[Item], left_out: LeftOuts, progress: Progress) -> list[Sample]:
        """Return the samples that can be used; count the other items."""
        said = list(_samples(map(self._said, items), left_out))
        new = {path: None for sample in said for path in sample.images} | self._looked
        with progress.stage("looking for images", total=len(new), done=len(self._looked)):
            for path in new:
                if path not in self._looked:
                    self._look(path)
                    progress.advance(1)
        return list(_samples(map(self._there, said), left_out))

    def _said(self, item: Item) -> Item:
        if isinstance(item, LeftOut):
            return item
        if not item.images or not all(path.strip() for path in item.images):
            return LeftOut(where=item.where, reason="it names no image")
        if problem := problem_of(item):
            return LeftOut(where=item.where, reason=problem)
        try:
            for path in item.images:
                check_path("image", path)
        except ValueError:
            reason = "its image path must be relative, with / between folders and no `..`"
            return LeftOut(where=self._where(item, path), reason=reason, image=path)
        return item

    def _there(self, sample: Sample) -> Item:
        for path in sample.images:
            if reason := self._look(path):
                return LeftOut(where=self._where(sample, path), reason=reason, image=path)
        return sample

    def _look(self, path: str) -> str | None:
        if path not in self._looked:
            problem = file_problem(self._images, path)
            self._looked[path] = None if problem is None else f"its image {problem}"
        return self._looked[path]

    def _where(self, sample: Sample, path: str) -> str:
        told = self._private or sample.where.endswith(path)
        return sample.where if told else f"{sample.where}: {shorten(path)}"


def _samples(items: Iterable[Item], left_out: LeftOuts) -> Iterator[Sample]:
    for item in items:
        if isinstance(item, Sample):
            yield item
        else:
            left_out.add(item)


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
            path.relative_to(root).as_posix(): sha256_file(path) for path in files_of(root, layout)
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
