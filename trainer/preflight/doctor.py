"""Every check that the arguments allow, one after the other; none hides another."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from ...pipeline.manifest import Record, even
from ...teacher_cache.reader import TeacherCache
from ..data.conversation import Encoded
from ..derived import derive
from ..machine import counted
from ..prepared import disagreements
from ..recipe.compose import find_recipe
from ..recipe.recipe import Recipe, RecipeError, for_ranks
from ..recipe.sections import DataSection
from ..run.loggers import check_installed
from ..students.spec import StudentSpec
from ..students.tiny import make_demo_student
from . import data_checks as dataset
from . import machine_checks as machine
from . import student_checks as model
from .data_checks import SCANNED, VisualTokens, measure_lengths
from .finding import Check

PREVIEWED: Final = 3
"""Conversations that are shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to look at; None is not looked at, or taken from the recipe.

    Attributes:
        manifest, images, student: paths.
        cache: folder or URL.
        recipe: path or a shipped recipe's name.
        sample: images that are decoded and compared, evenly spread.
        everything: look at every image and conversation, not at evenly spread ones.
    """

    manifest: Path | None = None
    images: Path | None = None
    cache: str | None = None
    student: Path | None = None
    recipe: str | None = None
    sample: int = 32
    everything: bool = False


Planned = tuple[str, Callable[[], Check]]


@dataclass(slots=True)
class Examination:
    """What was found out so far, for the checks that come after.

    Attributes:
        request: what to look at.
        scratch: where the student that is called `demo` is made.
        checks: outcomes, in order.
        previews: (record id, conversation) of a few samples.
        recipe, records, held_out, found, cache, student: what could be read; `found` are image
            files.
    """

    request: Request
    scratch: Path
    checks: list[Check] = field(default_factory=list)
    previews: list[tuple[str, Encoded]] = field(default_factory=list)
    recipe: Recipe | None = None
    records: list[Record] = field(default_factory=list)
    held_out: list[Record] = field(default_factory=list)
    found: list[str] = field(default_factory=list)
    cache: TeacherCache | None = None
    student: StudentSpec | None = None

    def run(self) -> None:
        """Make every check that can be made."""
        parts = (self._recipe, self._machine, self._student, self._cache, self._agree)
        data = (self._manifest, self._images, self._held_out, self._conversations)
        for part in (*parts, *data):
            for name, look in part():
                self.checks.append(_guarded(name, look))

    def _recipe(self) -> Iterator[Planned]:
        if self.request.recipe is not None:
            yield "recipe", partial(self._read_recipe, self.request.recipe)

    def _read_recipe(self, name: str) -> Check:
        try:
            self.recipe = Recipe.of(find_recipe(name))
            check_installed(self.recipe.log)
            ranks = _ranks(self.recipe)
            derive(for_ranks(self.recipe, ranks), ranks)
        except RecipeError as error:
            return Check("recipe", "failed", str(error), "mend the recipe")
        loss = self.recipe.loss
        text = f"{name}: layer {loss.layer}, alpha {loss.alpha}, beta {loss.beta}"
        if ranks > 1:
            text += f"; train_batch_size in {self.recipe.deepspeed.config} is that of {ranks} ranks"
            return Check("recipe", "warning", text, f"start {ranks} ranks, or write 'auto' there")
        return Check("recipe", "ok", text)

    def _machine(self) -> Iterator[Planned]:
        yield "versions", machine.versions
        yield "devices", machine.devices
        yield "memory", machine.memory
        places = {"runs": Path("runs")}
        cache = self.request.cache
        if cache is not None and "://" not in cache:
            places["the cache"] = Path(cache)
        near = self._data().cache_folder or os.environ.get("MEDALIGN_CACHE_FOLDER")
        if near:
            places["rows of remote caches"] = Path(near)
        for what, path in places.items():
            yield "disk", partial(machine.disk, what, path)
        yield "shared memory", partial(machine.shared_memory, self._data().workers)
        if self.recipe is not None and self.recipe.student.attention == "flash_attention_2":
            yield "attention", machine.flash_attention
        if self.recipe is not None and self.recipe.student.quantize != "none":
            yield "quantisation", machine.bitsandbytes

    def _student(self) -> Iterator[Planned]:
        path = self._path("student")
        if path is None:
            return
        if path == Path("demo") and self.request.student is None:
            path = self.scratch / "demo-student"
            make_demo_student(path)
        yield "student", partial(self._read_student, path)
        if path.is_dir():
            yield "weights", partial(model.weights, path)

    def _read_student(self, path: Path) -> Check:
        geometry = "processor" if self.recipe is None else self.recipe.student.geometry
        self.student, check = model.read(path, geometry)
        return check

    def _cache(self) -> Iterator[Planned]:
        if self.request.cache is not None:
            yield "cache", partial(self._open_cache, self.request.cache)
        if self.cache is not None:
            yield "certificate", partial(dataset.certificate, self.cache)

    def _open_cache(self, store: str) -> Check:
        self.cache, check = dataset.opened(store)
        return check

    def _agree(self) -> Iterator[Planned]:
        sides = {"recipe": self.recipe, "cache": self.cache, "student": self.student}
        given = [name for name, side in sides.items() if side is not None]
        if len(given) > 1:
            names = f"{', '.join(given[:-1])} and {given[-1]}"
            yield "agreement", partial(self._compare, names)

    def _compare(self, given: str) -> Check:
        wrong = disagreements(self.recipe, self.cache, self.student)
        if wrong:
            text = f"{given} do not fit together: {counted(len(wrong), 'disagreement')}"
            return Check("agreement", "failed", text, "each says what would fit", tuple(wrong))
        return Check("agreement", "ok", f"{given} fit together")

    def _manifest(self) -> Iterator[Planned]:
        path = self._path("manifest")
        if path is not None:
            yield "manifest", partial(self._read_manifest, path)

    def _read_manifest(self, path: Path) -> Check:
        self.records, check = dataset.read_records(path)
        return check

    def _images(self) -> Iterator[Planned]:
        folder = self._path("images")
        if self.records and self.cache is not None:
            yield "cache rows", partial(dataset.covered, self.records, self.cache)
        if folder is None or not self.records:
            return
        yield "image files", partial(self._find_images, folder)
        if self.found:
            sample = None if self.request.everything else self.request.sample
            yield "decoding", partial(dataset.decoded, self.found, folder, sample)
            if self.cache is not None:
                look = partial(dataset.unchanged, self.found, folder, self.cache, sample)
                yield "image bytes", look

    def _find_images(self, folder: Path) -> Check:
        self.found, check = dataset.present(self.records, folder)
        return check

    def _held_out(self) -> Iterator[Planned]:
        if self.recipe is None:
            return
        validation = self.recipe.validation
        if validation.manifest is None:
            return
        yield "held-out manifest", partial(self._read_held_out, Path(validation.manifest))
        if self.held_out and self.cache is not None:
            yield "held-out rows", partial(self._held_out_rows, self.cache)
        folder = Path(validation.images) if validation.images else self._path("images")
        if folder is not None and (self.held_out or validation.images):
            yield "held-out images", partial(self._find_held_out, folder)

    def _read_held_out(self, path: Path) -> Check:
        self.held_out, check = dataset.read_records(path)
        return replace(check, name="held-out manifest")

    def _held_out_rows(self, cache: TeacherCache) -> Check:
        return replace(dataset.covered(self.held_out, cache), name="held-out rows")

    def _find_held_out(self, folder: Path) -> Check:
        _, check = dataset.present(self.held_out, folder)
        advice = "is validation.images right?" if check.status == "failed" else ""
        return replace(check, name="held-out images", advice=advice)

    def _conversations(self) -> Iterator[Planned]:
        if self.records and self.student is not None:
            yield "lengths", partial(self._measure, self.student)

    def _measure(self, student: StudentSpec) -> Check:
        most = self._data().max_length
        limit = None if self.request.everything else SCANNED
        visual = VisualTokens(student.sight, self._path("images"))
        found = measure_lengths(self.records, student.encoder, most, visual, limit)
        for place in even(found.places.tolist(), PREVIEWED):
            record = self.records[place]
            encoded = student.encoder.training(record, most, visual.of(record))
            self.previews.append((record.id, encoded))
        return model.lengths(found, most)

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


def _ranks(recipe: Recipe) -> int:
    """Ranks that the user's DeepSpeed file is written for; 1 where it leaves that open."""
    config = recipe.deepspeed.config
    if config is None or recipe.data.per_step is not None:
        return 1
    try:
        said = json.loads(Path(config).read_text()).get("train_batch_size")
    except (OSError, ValueError, AttributeError):
        return 1  # what is wrong with the file is said where it is read
    each = recipe.data.batch_size * recipe.data.micro_steps
    return said // each if isinstance(said, int) and said > 0 and said % each == 0 else 1


def _guarded(name: str, look: Callable[[], Check]) -> Check:
    """What a check did not foresee is a failure of that check alone."""
    try:
        return look()
    except Exception as error:
        text = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        return Check(name, "failed", text, "the other checks were made")
