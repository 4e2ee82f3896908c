"""Every check that the arguments allow, one after the other; none hides another."""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from ...pipeline.hygiene.finding import Check, guarded
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
from ..students.spec import StudentError, StudentSpec, read_student
from ..students.tiny import make_demo_student
from . import cache_check
from . import machine_checks as machine
from .data_check import DataSet
from .lengths import SCANNED, VisualTokens, check_lengths, measure_lengths
from .student_check import checks_without_text, quick_checks

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


Planned = tuple[str, Callable[[], Check | Iterable[Check]]]


@dataclass(slots=True)
class Examination:
    """The outcomes so far, for the checks that come after.

    Attributes:
        request: what to look at.
        scratch: folder where the student that is called `demo` is made.
        checks: outcomes, in order.
        previews: (record id, conversation) of a few samples.
        recipe, data, held_out, cache, student: what could be read.
    """

    request: Request
    scratch: Path
    checks: list[Check] = field(default_factory=list)
    previews: list[tuple[str, Encoded]] = field(default_factory=list)
    recipe: Recipe | None = None
    data: DataSet | None = None
    held_out: DataSet | None = None
    cache: TeacherCache | None = None
    student: StudentSpec | None = None

    def run(self) -> None:
        """Make every check that can be made."""
        parts = (self._recipe, self._machine, self._student, self._cache, self._agree)
        data = (self._manifest, self._images, self._held_out, self._conversations)
        for part in (*parts, *data):
            for name, look in part():
                self.checks += guarded(name, look)

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
        folders = {"runs": Path("runs")}
        cache = self.request.cache
        if cache is not None and "://" not in cache:
            folders["the cache"] = Path(cache)
        nearby = self._section().cache_folder or os.environ.get("MEDALIGN_CACHE_FOLDER")
        if nearby:
            folders["rows of remote caches"] = Path(nearby)
        for what, path in folders.items():
            yield "disk", partial(machine.disk, what, path)
        yield "shared memory", partial(machine.shared_memory, self._section().workers)
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

    def _read_student(self, path: Path) -> Iterator[Check]:
        geometry = "processor" if self.recipe is None else self.recipe.student.geometry
        try:
            spec = read_student(path, geometry)
        except StudentError as error:
            yield Check("student", "failed", str(error), "see the README for what students are")
            yield from checks_without_text(path)
            return
        self.student = spec
        encoder = spec.encoder
        token = encoder.tokenizer.convert_ids_to_tokens(encoder.image_token_id)
        text = f"{path}: {spec.family.model_type}, {spec.layers} layers, {spec.sight}"
        yield Check("student", "ok", f"{text}, image token {token!r}")
        yield from quick_checks(spec)

    def _cache(self) -> Iterator[Planned]:
        if self.request.cache is not None:
            yield "cache", partial(self._open_cache, self.request.cache)
        if self.cache is not None:
            yield "certificate", partial(cache_check.certificate, self.cache)

    def _open_cache(self, store: str) -> Check:
        self.cache, check = cache_check.opened(store)
        return check

    def _agree(self) -> Iterator[Planned]:
        sides = {"recipe": self.recipe, "cache": self.cache, "student": self.student}
        names = [name for name, side in sides.items() if side is not None]
        if len(names) > 1:
            yield "agreement", partial(self._compare, f"{', '.join(names[:-1])} and {names[-1]}")

    def _compare(self, names: str) -> Check:
        wrong = disagreements(self.recipe, self.cache, self.student)
        if wrong:
            text = f"{names} do not fit together: {counted(len(wrong), 'disagreement')}"
            return Check("agreement", "failed", text, "each says what would fit", tuple(wrong))
        return Check("agreement", "ok", f"{names} fit together")

    def _manifest(self) -> Iterator[Planned]:
        path = self._path("manifest")
        if path is not None:
            self.data = DataSet(path)
            yield "manifest", self.data.read

    def _images(self) -> Iterator[Planned]:
        folder, data = self._path("images"), self.data
        if data is None or not data.records:
            return
        if self.cache is not None:
            yield "cache rows", partial(self._rows, data, self.cache)
        if folder is None:
            return
        yield "image files", partial(data.find, folder, "give --images DIR")
        if data.images:
            sample = None if self.request.everything else self.request.sample
            yield "decoding", partial(data.decode, sample)
            if self.cache is not None:
                look = partial(cache_check.unchanged, data.images, folder, self.cache, sample)
                yield "image bytes", look

    def _rows(self, data: DataSet, cache: TeacherCache) -> Check:
        return cache_check.covered(data.records, cache, self._section().on_missing)

    def _held_out(self) -> Iterator[Planned]:
        """The same checks of `validation.manifest`, each under a name of its own."""
        validation = None if self.recipe is None else self.recipe.validation
        if validation is None or validation.manifest is None:
            return
        self.held_out = data = DataSet(Path(validation.manifest))
        yield "held-out manifest", lambda: (_held_out(check) for check in data.read())
        cache = self.cache
        if data.records and cache is not None:
            yield "held-out rows", lambda: _held_out(self._rows(data, cache))
        folder = Path(validation.images) if validation.images else self._path("images")
        if folder is not None and (data.records or validation.images):
            advice = "is validation.images right?"
            yield "held-out images", lambda: _held_out(data.find(folder, advice), advice)

    def _conversations(self) -> Iterator[Planned]:
        if self.data is not None and self.data.records and self.student is not None:
            yield "lengths", partial(self._measure, self.data.records, self.student)

    def _measure(self, records: list[Record], student: StudentSpec) -> Check:
        most = self._section().max_length
        limit = None if self.request.everything else SCANNED
        visual = VisualTokens(student.sight, self._path("images"))
        lengths = measure_lengths(records, student.encoder, most, visual, limit)
        for number in even(lengths.numbers.tolist(), PREVIEWED):
            record = records[number]
            encoded = student.encoder.training(record, most, visual.of(record))
            self.previews.append((record.id, encoded))
        return check_lengths(lengths, most)

    def _section(self) -> DataSection:
        return DataSection() if self.recipe is None else self.recipe.data

    def _path(self, name: str) -> Path | None:
        """The path on the command line, or else the recipe's."""
        path: Path | None = getattr(self.request, name)
        if path is None and self.recipe is not None:
            section: Any = self.recipe.student if name == "student" else self.recipe.data
            written = section.path if name == "student" else getattr(section, name)
            path = None if written is None else Path(written)
        return path


_HELD_OUT: Final = {"cache rows": "held-out rows", "image files": "held-out images"}


def _held_out(check: Check, advice: str = "") -> Check:
    name = _HELD_OUT.get(check.name, f"held-out {check.name}")
    return replace(check, name=name, advice=check.advice and (advice or check.advice))


def _ranks(recipe: Recipe) -> int:
    """Ranks that the user's DeepSpeed file is written for; 1 where it leaves that open."""
    config = recipe.deepspeed.config
    if config is None or recipe.data.per_step is not None:
        return 1
    try:
        size = json.loads(Path(config).read_text()).get("train_batch_size")
    except (OSError, ValueError, AttributeError):
        return 1  # what is wrong with the file is said where it is read
    per_rank = recipe.data.batch_size * recipe.data.micro_steps
    return size // per_rank if isinstance(size, int) and size > 0 and size % per_rank == 0 else 1
