"""Show the demo's results: a table, loss curves, attention overlays, a report."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from rich.table import Table

from ..eval.alignment import mass_inside
from ..eval.figures.figures import attention_overlay, loss_curves
from ..eval.html_report.cards import question
from ..eval.html_report.write import write_report
from ..eval.source import Source
from ..pipeline.geometry import apply_geometry, mask_patches
from ..pipeline.manifest import Record, read_manifest
from ..pipeline.pixels import read_image
from ..teacher_cache.reader import TeacherCache
from ..trainer.students.spec import read_student
from .run import Demo, Trained, metrics_of

_CAPTION = (
    "lm: cross-entropy of an answer token. vis: squared gap between similarity matrices (Eq. 4). "
    "att: KL of expert and student attention (Eq. 5). mass in mask: share of the attention that "
    "falls inside the image's mask. size: of the cache, and of the adapters."
)

Float32 = npt.NDArray[np.float32]


def table(demo: Demo) -> Table:
    """Return losses on held-back records and attention inside the masks, before and after."""
    results = Table(
        title="held-back records, before and after training",
        title_justify="left",
        caption=_CAPTION,
        caption_justify="left",
    )
    results.add_column("")
    for column in ("expert", "before", *(run.name for run in demo.trained)):
        results.add_column(column, justify="right")
    after = [run.after for run in demo.trained]
    for label, field in (("lm, nats", "lm"), ("vis", "vis"), ("att, nats", "att")):
        values = [f"{getattr(measured, field):.4f}" for measured in (demo.before, *after)]
        results.add_row(label, "", *values)
    masks = _masks(demo)
    expert, *students = (
        f"{_mean_mass(maps, masks):.3f}"
        for maps in (_expert_maps(demo, masks), *(m.attention for m in (demo.before, *after)))
    )
    area = np.mean([mass_inside(valid.astype(np.float32), m, valid) for m, valid in masks.values()])
    results.add_row(f"mass in mask, even {area:.3f}", expert, *students)
    results.add_row("closed right, %", "", "", *(_closed(run) for run in demo.trained))
    seconds = [f"{run.seconds:.0f} s" if run.seconds else "reused" for run in demo.trained]
    results.add_row("time", f"{demo.cache_seconds:.0f} s, once", "", *seconds)
    adapters = [f"{_bytes_of(run.out / 'adapter') / 2**20:.1f} MB" for run in demo.trained]
    results.add_row("size", f"{demo.cache_bytes / 2**20:.1f} MB", "", *adapters)
    return results


def draw(demo: Demo) -> list[Path]:
    """Write loss curves and an overlay for every held-back image with a mask; return the files."""
    curves = demo.out / "figures" / "loss_curves.png"
    loss_curves({run.name: metrics_of(run.out) for run in demo.trained}, curves)
    return [curves, *_overlays(demo)]


def report(demo: Demo) -> Path:
    """Write the answers of both runs as one HTML file, with expert's and students' attention."""
    runs = [run.out for run in demo.trained]
    written = write_report(
        [demo.out / "predictions" / f"{run.name}.jsonl" for run in runs],
        demo.data / "test.jsonl",
        demo.data,
        "vqa",
        demo.out / "report.html",
        cache=TeacherCache.open(demo.out / "cache"),
        sources=[(run.name, Source(demo.out / "student", run / "adapter")) for run in runs],
    )
    return written.out


def _overlays(demo: Demo) -> Iterator[Path]:
    spec = read_student(demo.out / "student")
    masks = _masks(demo)
    expert = _expert_maps(demo, masks)
    for record, image in _masked_records(demo):
        covered, valid = masks[record.id]
        rgb = read_image(demo.data / image).rgb
        maps = {
            "expert": expert[record.id],
            "student before": demo.before.attention[record.id],
            **{run.name: run.after.attention[record.id] for run in demo.trained},
        }
        path = demo.out / "figures" / f"attention_{Path(image).stem}.png"
        attention_overlay(
            apply_geometry(rgb, spec.geometry, spec.image_size, spec.square.fill),
            maps,
            spec.grid,
            path,
            valid=valid,
            mask=covered,
            title=f"{Path(image).name}: {question(record)}",
        )
        yield path


def _masked_records(demo: Demo) -> list[tuple[Record, str]]:
    """Return the first held-back record of every image that has a mask."""
    first: dict[str, Record] = {}
    for record in read_manifest(demo.data / "test.jsonl"):
        if record.images and record.fields.get("mask"):
            first.setdefault(record.images[0], record)
    return [(record, image) for image, record in first.items()]


def _masks(demo: Demo) -> dict[str, tuple[Float32, npt.NDArray[np.bool_]]]:
    """Return each patch's share inside the mask, and which patches are image, by record id."""
    spec = read_student(demo.out / "student")
    cache = TeacherCache.open(demo.out / "cache")
    masks = {}
    for record, image in _masked_records(demo):
        with Image.open(demo.data / record.fields["mask"]) as file:
            pixels = np.asarray(file.convert("L")) > 0
        masks[record.id] = (mask_patches(pixels, spec.geometry, spec.grid), cache[image].valid)
    return masks


def _expert_maps(demo: Demo, masks: Mapping[str, object]) -> dict[str, Float32]:
    cache = TeacherCache.open(demo.out / "cache")
    return {r.id: cache[image].attention for r, image in _masked_records(demo) if r.id in masks}


def _mean_mass(
    maps: Mapping[str, Float32], masks: Mapping[str, tuple[Float32, npt.NDArray[np.bool_]]]
) -> float:
    return float(np.mean([mass_inside(maps[key], *mask) for key, mask in masks.items()]))


def _closed(run: Trained) -> str:
    scores = {metric.key: metric for metric in run.scores.metrics}
    closed = scores.get(("strict", "closed_accuracy"))
    return "-" if closed is None else f"{closed.value:.0f} (n={closed.n})"


def _bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
