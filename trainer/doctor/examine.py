"""Every check that the arguments allow, one after the other; none hides another."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...pipeline.manifest import Record
from ...teacher_cache.certificate import read_certificate
from ...teacher_cache.reader import TeacherCache
from ...teacher_cache.schema import TeacherCacheError
from ..agreement import disagreements
from ..amounts import counted
from ..conversation import ConversationError, Encoded
from ..lengths import SCANNED, measure_lengths
from ..prepare import check_precision
from ..recipe import DataSection, Recipe, RecipeError, find_recipe
from ..students.spec import StudentSpec
from ..students.tiny import make_demo_student
from . import dataset, machine, model
from .check import Check

PREVIEWED = 3
SAMPLED = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to look at; None is not looked at, or taken from the recipe.

    Attributes:
        manifest, images, student: paths.
        cache: folder or URL.
        recipe: path or a shipped recipe's name.
        everything: look at every image and conversation, not at evenly spread ones.
    """

    manifest: Path | None = None
    images: Path | None = None
    cache: str | None = None
    student: Path | None = None
    recipe: str | None = None
    everything: bool = False


@dataclass(slots=True)
class Examination:
    """What was found out so far, for the checks that come after.

    Attributes:
        request: what to look at.
        scratch: where the student that is called `demo` is made.
        checks: outcomes, in order.
        previews: (record id, conversation) of a few samples.
    """

    request: Request
    scratch: Path
    checks: list[Check] = field(default_factory=list)
    previews: list[tuple[str, Encoded]] = field(default_factory=list)
    recipe: Recipe | None = None
    records: list[Record] = field(default_factory=list)
    cache: TeacherCache | None = None
    student: StudentSpec | None = None

    def run(self) -> None:
        """Make every check that can be made."""
        parts = (self._recipe, self._machine, self._student, self._cache, self._agree)
        for part in (*parts, self._manifest, self._images, self._conversations):
            self._guarded(part)

    def _guarded(self, part: Callable[[], Iterator[Check]]) -> None:
        """Keep what a part found; what it did not foresee is a failure of that part alone."""
        try:
            for check in part():
                self.checks.append(check)
        except Exception as error:
            name = part.__name__.strip("_")
            text = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            self.checks.append(Check(name, "failed", text, "the checks after it go on"))

    def _recipe(self) -> Iterator[Check]:
        if self.request.recipe is None:
            return
        try:
            self.recipe = Recipe.from_yaml(find_recipe(self.request.recipe))
            check_precision(self.recipe)
        except RecipeError as error:
            yield Check("recipe", "failed", str(error), "mend the recipe")
            return
        loss = self.recipe.loss
        text = f"{self.request.recipe}: layer {loss.layer}, alpha {loss.alpha}, beta {loss.beta}"
        yield Check("recipe", "ok", text)

    def _machine(self) -> Iterator[Check]:
        yield machine.versions()
        yield machine.devices()
        yield machine.memory()
        places = {"runs": Path("runs")}
        cache = self.request.cache
        if cache is not None and "://" not in cache:
            places["the cache"] = Path(cache)
        near = self._data().cache_folder or os.environ.get("MEDALIGN_CACHE_FOLDER")
        if near:
            places["rows of remote caches"] = Path(near)
        yield from machine.disks(places)
        yield machine.shared_memory(self._data().workers)
        if self.recipe is not None:
            yield from machine.attention(self.recipe)

    def _student(self) -> Iterator[Check]:
        path = self._path("student")
        if path is None:
            return
        if path == Path("demo") and self.request.student is None:
            path = self.scratch / "demo-student"
            make_demo_student(path)
        geometry = "processor" if self.recipe is None else self.recipe.student.geometry
        self.student, check = model.read(path, geometry)
        yield check
        if path.is_dir():
            yield model.weights(path)

    def _cache(self) -> Iterator[Check]:
        if self.request.cache is None:
            return
        try:
            self.cache = TeacherCache.open(self.request.cache)
        except TeacherCacheError as error:
            yield Check("cache", "failed", str(error), "training takes sealed caches only")
            return
        card = self.cache.card
        text = (
            f"{self.cache.store}: sealed, {counted(len(self.cache), 'row')} of {card.expert.name}, "
            f"{card.grid}, geometry {card.geometry}, mode {card.mode}"
        )
        yield Check("cache", "ok", text)
        certificate = read_certificate(self.cache.certificate)
        if certificate is None:
            advice = "medalign cache seal recomputes rows with the expert"
            yield Check("certificate", "warning", "no rows were recomputed", advice)
        else:
            yield Check("certificate", "ok", certificate.summary())

    def _agree(self) -> Iterator[Check]:
        given = [side for side in (self.recipe, self.cache, self.student) if side is not None]
        if len(given) < 2:
            return
        wrong = disagreements(self.recipe, self.cache, self.student)
        if wrong:
            yield from (Check("agreement", "failed", problem) for problem in wrong)
            return
        names = {"recipe": self.recipe, "cache": self.cache, "student": self.student}
        yield Check("agreement", "ok", f"{' and '.join(n for n in names if names[n])} fit together")

    def _manifest(self) -> Iterator[Check]:
        path = self._path("manifest")
        if path is not None:
            self.records, check = dataset.read_records(path)
            yield check

    def _images(self) -> Iterator[Check]:
        folder = self._path("images")
        if self.records and self.cache is not None:
            yield dataset.covered(self.records, self.cache)
        if folder is None:
            return
        if not folder.is_dir():
            yield Check("images", "failed", f"{folder} is no folder", "give --images DIR")
            return
        if self.records:
            there, check = dataset.present(self.records, folder)
            yield check
            sample = None if self.request.everything else SAMPLED
            yield dataset.decoded(there, folder, sample)
            if self.cache is not None:
                yield dataset.unchanged(there, folder, self.cache, sample)

    def _conversations(self) -> Iterator[Check]:
        if not self.records or self.student is None:
            return
        most = self._data().max_length
        encoder = self.student.encoder
        limit = None if self.request.everything else SCANNED
        found = measure_lengths(self.records, encoder, most, limit)
        yield model.lengths(found, self.records, most)
        steps = max(1, PREVIEWED - 1)
        usable = found.places.tolist()
        chosen = {usable[k * (len(usable) - 1) // steps] for k in range(PREVIEWED) if usable}
        for place in sorted(chosen):
            record = self.records[place]
            self.previews.append((record.id, encoder.training(record, most)))

    def _data(self) -> DataSection:
        return DataSection() if self.recipe is None else self.recipe.data

    def _path(self, name: str) -> Path | None:
        """What the command line gives, or else the recipe."""
        given: Path | None = getattr(self.request, name)
        if given is None and self.recipe is not None:
            section: Any = self.recipe.student if name == "student" else self.recipe.data
            written = section.path if name == "student" else getattr(section, name)
            given = None if written is None else Path(written)
        return given
