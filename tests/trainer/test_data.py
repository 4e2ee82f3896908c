import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from medalign.pipeline.manifest import read_manifest
from medalign.teacher_cache.reader import TeacherCache
from medalign.trainer.data.batch import collate
from medalign.trainer.data.dataset import Conversations, MissingTeacherError, select
from medalign.trainer.data.teacher import Patches, Teacher
from medalign.trainer.students.spec import read_student

Dataset = Callable[..., tuple[Path, Path, Path]]


def patches_of(teacher: Teacher) -> torch.Tensor:
    assert isinstance(teacher.spatial, Patches)
    features: torch.Tensor = teacher.spatial.features
    return features


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


def test_a_changed_image_is_refused_naming_both_sides(
    dataset: Dataset, students: Callable[..., Path]
) -> None:
    manifest, images, store = dataset(images=3, records=3)
    (images / "1.png").write_bytes((images / "2.png").read_bytes())
    samples = Conversations(
        read_manifest(manifest), images, read_student(students()), 512, TeacherCache.open(store)
    )
    batch = collate([samples[k] for k in range(3)], 0)
    assert len(batch.refused) == 1
    assert re.search(r"1\.png.*sha256.*restore the image", batch.refused[0])
    assert batch.teacher_images == 2


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


def turns(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[k % 2], "value": text} for k, text in enumerate(texts)]


MIXED = [
    {
        "id": "pair",
        "image": ["0.png", "strange.png"],
        "conversations": turns("<image><image>\nWhich organ is shown?", "the lungs"),
    },
    {
        "id": "long",
        "image": ["1.png", "2.png"],
        "conversations": turns(
            "<image>\nIs this an X-ray?", "yes", "Which organ?", "the lungs", "<image>\nAnd?", "no"
        ),
    },
    TEXT_ONLY,
]


def test_of_two_images_the_one_that_the_cache_has_still_teaches(
    dataset: Dataset, students: Callable[..., Path]
) -> None:
    manifest, images, store = dataset(images=3, records=1, extra=MIXED)
    (images / "strange.png").write_bytes((images / "1.png").read_bytes())
    cache = TeacherCache.open(store)
    chosen = select(read_manifest(manifest), cache, "lm_only")
    assert (len(chosen.records), chosen.text_only, chosen.without_teacher) == (4, 1, 1)
    samples = Conversations(chosen.records, images, read_student(students()), 512, cache)
    batch = collate([samples[k] for k in range(4)], 0)
    assert batch.ids == ("r0", "pair", "long", "text")
    assert (batch.skipped, batch.refused) == ((), ())
    # Every image is shown to the student; four of the five have a teacher.
    assert batch.pixel_values is not None
    assert len(batch.pixel_values) == 5
    assert batch.teacher is not None
    look = batch.teacher.look
    assert look.owner.tolist() == [0, 1, 2, 2]
    for k, name in enumerate(("0.png", "0.png", "1.png", "2.png")):
        assert np.array_equal(patches_of(batch.teacher)[k], cache[name].features)
    # The first of the pair teaches, at the first half of the pair's image tokens.
    token = samples.student.encoder.image_token_id
    places = torch.nonzero(batch.input_ids[1] == token).flatten()
    assert torch.equal(look.cols[1], places[: len(places) // 2])
    # Each of two images is asked about in its own turn, text-only turns between them included.
    first, second = (look.rows[k][look.rows_ok[k]] for k in (2, 3))
    assert first.max() < look.cols[3].min() <= look.cols[3].max() < second.min()


def test_drop_leaves_out_a_record_of_which_one_image_is_missing(dataset: Dataset) -> None:
    manifest, _, store = dataset(images=3, records=1, extra=MIXED)
    chosen = select(read_manifest(manifest), TeacherCache.open(store), "drop")
    assert [record.id for record in chosen.records] == ["r0", "long", "text"]
    assert (chosen.dropped, chosen.text_only, chosen.without_teacher) == (1, 1, 0)
    assert chosen.reasons == {"not in the cache": 1}
    with pytest.raises(MissingTeacherError, match=r"record 'pair': image 'strange.png'"):
        select(read_manifest(manifest), TeacherCache.open(store), "fail")


def test_without_a_cache_every_record_is_kept(dataset: Dataset) -> None:
    manifest, _, _ = dataset(images=3, records=1, extra=MIXED)
    chosen = select(read_manifest(manifest), None, "fail")
    assert (len(chosen.records), chosen.dropped, chosen.without_teacher) == (4, 0, 0)
