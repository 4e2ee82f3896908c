"""The whole job on packaged real images: cache, two trainings, answers, scores, figures."""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from .. import __version__
from ..eval.alignment import Measured, measure
from ..eval.decoders.settings import Greedy
from ..eval.generate import generate
from ..eval.result_file import result_json, write_result
from ..eval.score import Scores, score
from ..eval.source import Source
from ..pipeline.build import build
from ..pipeline.build_options import BuildOptions
from ..pipeline.experts import load_expert
from ..pipeline.manifest import read_manifest
from ..pipeline.recompute import certifier
from ..runtime.files import make_folder, write_durably
from ..teacher_cache.audit import info
from ..teacher_cache.origin import Origin
from ..teacher_cache.reader import TeacherCache
from ..teacher_cache.seal import seal
from ..trainer.loop import Step
from ..trainer.prepared import Say, with_paths
from ..trainer.recipe.compose import find_recipe
from ..trainer.recipe.recipe import Recipe
from ..trainer.student import load_base, load_student
from ..trainer.students.probe import attach
from ..trainer.students.spec import StudentSpec, read_student
from ..trainer.students.tiny import make_demo_student
from ..trainer.train import train

SAMPLE = Path(__file__).parent / "sample"
PLAIN = ("loss.alpha=0", "loss.beta=0", "loss.rotation=false")


class DemoError(ValueError):
    """The demo's folder holds something else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """One of the two runs, and its results.

    Attributes:
        name: `plain LoRA` or `MedAlign`.
        out: run folder.
        after: losses and attention on held-back records.
        scores: of its answers to them.
        seconds: of training; 0 if an earlier demo had finished it.
    """

    name: str
    out: Path
    after: Measured
    scores: Scores
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Demo:
    """Results of the demo.

    Attributes:
        out: folder with all of them.
        images, cache_bytes, cache_seconds: of the teacher cache.
        gram_bytes: size of a float32 similarity matrix for each image, for comparison.
        before: the student before any training, on the held-back records.
        trained: plain LoRA and MedAlign.
    """

    out: Path
    images: int
    cache_bytes: int
    gram_bytes: int
    cache_seconds: float
    before: Measured
    trained: tuple[Trained, Trained]

    @property
    def data(self) -> Path:
        """Folder of manifests, images and masks."""
        return self.out / "data"


def run_demo(out: Path, say: Say, report: Callable[[Step, int], None]) -> Demo:
    """Do the whole job below `out`; reuse the files of an earlier run.

    Raises:
        ValueError: `out` holds something else.
    """
    started = time.monotonic()
    data = _data(out)
    store = _cache(data, out, say)
    cache_seconds = time.monotonic() - started
    cache = TeacherCache.open(store)
    make_demo_student(out / "student")
    spec = read_student(out / "student")
    before = _measure(_untrained(spec), spec, data, cache)
    runs = []
    for name, folder, overrides in (("plain LoRA", "plain", PLAIN), ("MedAlign", "medalign", ())):
        say(f"train    {name}")
        recipe = Recipe.of(find_recipe("demo"), overrides)
        chosen = with_paths(
            recipe, student=out / "student", manifest=data / "train.jsonl", images=data
        )
        begun = time.monotonic()
        result = train(chosen, store, out / "runs" / folder, say=lambda _: None, report=report)
        if result.steps < result.of:
            raise KeyboardInterrupt  # a signal stopped it, with a checkpoint
        seconds = time.monotonic() - begun if result.last else 0.0
        if result.last is None:
            say(f"train    {result.out} was finished before; reusing it")
        runs.append(_evaluated(name, result.out, seconds, out, spec, cache, say))
    size = info(store)["size_bytes"]
    return Demo(
        out=out,
        images=len(cache),
        cache_bytes=size,
        gram_bytes=4 * len(cache) * spec.grid.size**2,
        cache_seconds=cache_seconds,
        before=before,
        trained=(runs[0], runs[1]),
    )


def _data(out: Path) -> Path:
    """Copy the packaged data, so that every other command can be tried on it."""
    _claim(out)
    data = out / "data"
    for packaged in SAMPLE.rglob("*"):
        if packaged.is_file():
            copy = data / packaged.relative_to(SAMPLE)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(packaged, copy)
    return data


def _cache(data: Path, out: Path, say: Say) -> Path:
    """Build and seal the cache of all sample images, held-back ones included."""
    store = out / "cache"
    manifest = out / "manifest.jsonl"
    both = b"".join((data / f"{split}.jsonl").read_bytes() for split in ("train", "test"))
    write_durably(manifest, both)
    say("cache    expert `demo` looks once at every image")
    expert = load_expert("demo")
    options = BuildOptions(shard_rows=8, workers=2)
    origin = _origin(manifest, data, store, options)
    build(manifest, data, store, expert, options, origin=origin)
    sealed = seal(store, certify=certifier(data, expert))
    state = "was sealed before; reusing it" if sealed.already else "sealed"
    say(f"cache    {store} {state}: {sealed.rows} images")
    return store


def _origin(manifest: Path, data: Path, store: Path, options: BuildOptions) -> Origin:
    """Return the origin that lets `medalign cache` find manifest, images and expert again."""
    records, images, out = (str(path.resolve()) for path in (manifest, data, store))
    words = ("--images", images, "--expert", "demo", "--out", out)
    rows = ("--shard-rows", str(options.shard_rows))
    command = ("medalign", "cache", "build", records, *words, *rows)
    return Origin(command=command, manifest=records, images=images, expert="demo")


def _claim(out: Path) -> None:
    """Take an absent or empty folder, or one of an earlier demo; refuse any other.

    Raises:
        DemoError: it holds something else.
    """
    mark = out / "demo.json"
    if out.exists() and not mark.is_file() and (not out.is_dir() or any(out.iterdir())):
        raise DemoError(f"{out} is not empty and holds no earlier demo; give another --out")
    make_folder(out)
    write_durably(mark, json.dumps({"medalign": __version__}).encode())


def _untrained(spec: StudentSpec) -> object:
    model = load_base(spec.path, torch.float32)
    attach(model, Recipe.of(find_recipe("demo")).loss.layer, rotation=False)
    return model


def _evaluated(
    name: str,
    run: Path,
    seconds: float,
    out: Path,
    spec: StudentSpec,
    cache: TeacherCache,
    say: Say,
) -> Trained:
    """Answer the held-back questions with a run, score the answers, and measure its losses."""
    predictions = out / "predictions" / f"{run.name}.jsonl"
    data = out / "data"
    manifest = data / "test.jsonl"
    answered = generate(
        Source(spec.path, run / "adapter"),
        manifest,
        data,
        predictions,
        Greedy(max_new_tokens=16),
        batch_size=6,
    )
    say(f"answers  {predictions}: {answered.answered} new, {answered.reused} from before")
    scores = score(predictions, manifest, "vqa")
    write_result(out / "scores" / f"{run.name}.json", result_json(scores))
    model = load_student(load_base(spec.path, torch.float32), run / "adapter", probe=True)
    return Trained(
        name=name,
        out=run,
        after=_measure(model, spec, data, cache),
        scores=scores,
        seconds=seconds,
    )


def _measure(model: object, spec: StudentSpec, data: Path, cache: TeacherCache) -> Measured:
    loss = Recipe.of(find_recipe("demo")).loss
    return measure(model, spec, read_manifest(data / "test.jsonl"), data, cache, loss)


def metrics_of(run: Path) -> list[dict[str, float]]:
    """Read the steps of a run."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]
