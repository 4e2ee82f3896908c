import json
import pickle  # noqa: TID251 - what a spawned worker receives
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from medalign.pipeline.manifest import read_manifest
from medalign.teacher_cache.reader import TeacherCache
from medalign.trainer.batch import collate
from medalign.trainer.data import (
    Conversations,
    MissingTeacherError,
    StepOrder,
    micro_batches,
    sample_at,
    select,
)
from medalign.trainer.students.spec import read_student
from medalign.trainer.teacher import Patches, Teacher

Dataset = Callable[..., tuple[Path, Path, Path]]


def patches_of(teacher: Teacher) -> torch.Tensor:
    assert isinstance(teacher.spatial, Patches)
    features: torch.Tensor = teacher.spatial.features
    return features


@given(
    length=st.integers(1, 50),
    seed=st.integers(0, 10),
    epoch=st.integers(0, 5),
)
def test_every_epoch_visits_each_sample_once(length: int, seed: int, epoch: int) -> None:
    begin = epoch * length
    order = [sample_at(p, length, seed) for p in range(begin, begin + length)]
    assert sorted(order) == list(range(length))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return [sample_at(epoch * 40 + p, 40, seed) for p in range(40)]

    orders = [tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)]
    assert len(set(orders)) == 9


@given(
    length=st.integers(1, 30),
    batch_size=st.integers(1, 4),
    accumulation=st.integers(1, 3),
    world=st.integers(1, 3),
    start=st.integers(0, 4),
)
def test_a_step_holds_the_same_samples_for_every_number_of_ranks_and_any_start(
    length: int, batch_size: int, accumulation: int, world: int, start: int
) -> None:
    def steps(world: int, batch_size: int, accumulation: int, start: int) -> list[list[int]]:
        ranks = [
            list(
                StepOrder(
                    length=length,
                    seed=3,
                    batch_size=batch_size,
                    accumulation=accumulation,
                    rank=rank,
                    world=world,
                    start=start,
                    stop=6,
                )
            )
            for rank in range(world)
        ]
        return [
            sorted(
                k
                for micro in ranks
                for part in micro[s * accumulation : (s + 1) * accumulation]
                for k in part
            )
            for s in range(6 - start)
        ]

    whole = steps(1, batch_size * accumulation * world, 1, 0)
    assert steps(world, batch_size, accumulation, start) == whole[start:]


@pytest.mark.parametrize("left", [False, True])
def test_positions_point_at_the_same_tokens_after_padding(
    dataset: Dataset, students: Callable[..., Path], left: bool
) -> None:
    manifest, images, store = dataset(images=3, records=6)
    spec = read_student(students())
    samples = Conversations(read_manifest(manifest), images, spec, 512, TeacherCache.open(store))
    picked = [samples[k] for k in range(6)]
    batch = collate(picked, pad_id=0, left=left)
    assert len({len(s.encoded.input_ids) for s in picked if s.encoded}) > 1
    assert batch.teacher is not None
    look = batch.teacher.look
    token = spec.encoder.image_token_id
    for k, sample in enumerate(picked):
        assert sample.encoded is not None
        row = batch.input_ids[look.owner[k]]
        assert (row[look.cols[k]] == token).all()
        asked = row[look.rows[k][look.rows_ok[k]]]
        assert np.array_equal(asked, sample.encoded.input_ids[sample.encoded.rows[0]])
    learnt = batch.input_ids.flatten()[batch.predicts + 1]
    assert torch.equal(learnt, batch.targets)
    wanted = [s.encoded.labels[s.encoded.labels != -100] for s in picked if s.encoded]
    assert np.array_equal(batch.targets, np.concatenate(wanted))


def test_each_image_meets_its_own_teacher_row(
    dataset: Dataset, students: Callable[..., Path]
) -> None:
    manifest, images, store = dataset(images=4, records=4)
    cache = TeacherCache.open(store)
    samples = Conversations(read_manifest(manifest), images, read_student(students()), 512, cache)
    batch = collate([samples[k] for k in (2, 0, 3)], 0)
    assert batch.teacher is not None
    for k, name in enumerate(("2.png", "0.png", "3.png")):
        assert np.array_equal(patches_of(batch.teacher)[k], cache[name].features)
        assert np.array_equal(batch.teacher.attention[k], cache[name].attention)


def test_student_pixels_equal_those_of_the_processor(
    dataset: Dataset, students: Callable[..., Path]
) -> None:
    manifest, images, store = dataset(images=3, records=3)
    spec = read_student(students())
    samples = Conversations(read_manifest(manifest), images, spec, 512, TeacherCache.open(store))
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    processor = LlavaImageProcessorPil(
        do_pad=True, size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}
    )
    for k in range(3):
        with Image.open(images / f"{k}.png") as image:
            wanted = processor(image, return_tensors="np")["pixel_values"][0]
        assert np.allclose(samples[k].pixels[0], wanted, atol=1e-6)


def test_an_unreadable_image_is_skipped_without_weight_and_named(
    dataset: Dataset, students: Callable[..., Path]
) -> None:
    manifest, images, store = dataset(images=3, records=3)
    (images / "1.png").write_bytes(b"")
    samples = Conversations(
        read_manifest(manifest), images, read_student(students()), 512, TeacherCache.open(store)
    )
    batch = collate([samples[k] for k in range(3)], 0)
    assert [record for record, _ in batch.skipped] == ["r1"]
    assert "1.png" in batch.skipped[0][1]
    assert batch.teacher_images == 2
    assert batch.pixel_values is not None
    assert len(batch.pixel_values) == 2


@pytest.mark.parametrize("workers", [0, 2])
def test_a_changed_image_is_refused_naming_both_sides(
    dataset: Dataset, students: Callable[..., Path], workers: int
) -> None:
    manifest, images, store = dataset(images=3, records=3)
    (images / "1.png").write_bytes((images / "2.png").read_bytes())
    samples = Conversations(
        read_manifest(manifest), images, read_student(students()), 512, TeacherCache.open(store)
    )
    order = StepOrder(3, 0, 3, 1, 0, 1, 0, 1)
    (batch,) = micro_batches(samples, order, 0, workers)
    assert len(batch.refused) == 1
    assert re.search(r"1\.png.*sha256.*restore the image", batch.refused[0])
    assert batch.teacher_images == 2


def test_worker_processes_change_no_batch(dataset: Dataset, students: Callable[..., Path]) -> None:
    manifest, images, store = dataset(images=5, records=9)
    samples = Conversations(
        read_manifest(manifest), images, read_student(students()), 512, TeacherCache.open(store)
    )
    order = StepOrder(9, 0, 2, 2, 0, 1, 1, 4)
    one, two = (list(micro_batches(samples, order, 0, w)) for w in (0, 2))
    assert len(one) == len(two) == 6
    for a, b in zip(one, two, strict=True):
        assert a.ids == b.ids
        assert torch.equal(a.input_ids, b.input_ids)
        assert a.teacher is not None
        assert b.teacher is not None
        assert torch.equal(patches_of(a.teacher), patches_of(b.teacher))


def test_a_set_can_be_sent_to_a_spawned_process(
    dataset: Dataset, students: Callable[..., Path]
) -> None:
    manifest, images, store = dataset(images=2, records=2)
    samples = Conversations(
        read_manifest(manifest), images, read_student(students()), 512, TeacherCache.open(store)
    )
    _ = samples[0]  # with handles open
    again = pickle.loads(pickle.dumps(samples))
    assert np.array_equal(again[1].pixels[0], samples[1].pixels[0])


TEXT_ONLY = {
    "id": "text",
    "conversations": [
        {"from": "human", "value": "What is a rib?"},
        {"from": "gpt", "value": "A bone."},
    ],
}
STRANGE = {**TEXT_ONLY, "id": "strange", "image": "strange.png"}
STRANGE["conversations"] = [
    {"from": "human", "value": "<image>\nWhat?"},
    {"from": "gpt", "value": "A bone."},
]


def test_what_the_cache_lacks_is_dropped_kept_or_refused_and_counted(dataset: Dataset) -> None:
    manifest, _, store = dataset(
        images=3, records=6, extra=[TEXT_ONLY, STRANGE], failures={1: "is cut short"}
    )
    cache, records = TeacherCache.open(store), read_manifest(manifest)
    dropped = select(records, cache, "drop")
    assert (len(dropped.records), dropped.text_only, dropped.dropped) == (5, 1, 3)
    assert dropped.reasons == {"is cut short": 2, "not in the cache": 1}
    kept = select(records, cache, "lm_only")
    assert (len(kept.records), kept.without_teacher, kept.dropped) == (8, 3, 0)
    with pytest.raises(MissingTeacherError, match=r"record 'r1': image '1.png': is cut short"):
        select(records, cache, "fail")


def test_a_cache_of_other_images_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    _, _, store = dataset(images=2, records=2)
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps(STRANGE) + "\n")
    with pytest.raises(MissingTeacherError, match="none of 1 records has its images in the cache"):
        select(read_manifest(other), TeacherCache.open(store), "drop")
