"""Which samples training could read and open; the others are left out, each with its reason."""

import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..manifest import ManifestError, resolve_image
from ..progress import Progress
from ..records import check_path, shorten
from .record import problem_of
from .sample import Item, LeftOut, Sample
from .tally import LeftOuts

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
