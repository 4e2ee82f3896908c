import os
from collections.abc import Callable
from dataclasses import fields
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import pytest
import torch

from medalign.pipeline.manifest import read_manifest
from medalign.teacher_cache.reader import TeacherCache
from medalign.teacher_cache.schema import PatchGrid
from medalign.trainer.batch import Batch, collate, each_tensor
from medalign.trainer.data import Conversations
from medalign.trainer.parcel import Parcel
from medalign.trainer.students.probe import Look
from medalign.trainer.students.spec import read_student
from medalign.trainer.teacher import Codes, Teacher


def travelled(batch: Batch) -> Batch:
    arrived = ForkingPickler.loads(bytes(ForkingPickler.dumps(Parcel(batch))))
    assert isinstance(arrived, Batch)
    return arrived


def tensors(batch: Batch) -> list[torch.Tensor]:
    found: list[Any] = []
    each_tensor(batch, found.append)
    return found


@pytest.mark.parametrize("picked", [[0, 1, 2], [6]])  # three with images; one of text alone
def test_a_batch_arrives_as_it_was_sent(
    picked: list[int],
    dataset: Callable[..., tuple[Path, Path, Path]],
    students: Callable[..., Path],
) -> None:
    turns = [{"from": "human", "value": "What is a rib?"}, {"from": "gpt", "value": "A bone."}]
    extra = [{"id": "text", "conversations": turns}]
    manifest, images, store = dataset(images=6, records=6, extra=extra)
    samples = Conversations(
        read_manifest(manifest), images, read_student(students()), 512, TeacherCache.open(store)
    )
    sent = collate([samples[k] for k in picked], 0)
    arrived = travelled(sent)
    plain = [f.name for f in fields(Batch) if isinstance(getattr(sent, f.name), tuple | int)]
    assert [getattr(sent, name) for name in plain] == [getattr(arrived, name) for name in plain]
    pairs = list(zip(tensors(sent), tensors(arrived), strict=True))
    assert len(pairs) == (4 if picked == [6] else len(pairs))
    assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)


def test_codes_of_a_gram_cache_travel_too() -> None:
    grid = PatchGrid(2, 2)
    codes = Codes(
        codes=torch.arange(24, dtype=torch.int16).view(2, 3, 4),
        scale=torch.rand(2, 3),
        norms=torch.ones(2, 4),
        native=grid,
        student=grid,
    )
    ids, ok = torch.zeros(2, 5, dtype=torch.int64), torch.ones(2, 5, dtype=torch.bool)
    look = Look(owner=ids[0, :2], cols=ids[:, :4], rows=ids, rows_ok=ok, keys_ok=ok)
    teacher = Teacher(look, codes, attention=torch.rand(2, 4), valid=ok[:, :4])
    sent = Batch(("a", "b"), ids, ids, ids[0], ids[0], None, teacher, cut=1)
    arrived = travelled(sent)
    assert arrived.teacher is not None
    assert isinstance(arrived.teacher.spatial, Codes)
    assert (arrived.teacher.spatial.native, arrived.cut) == (grid, 1)
    assert all(torch.equal(a, b) for a, b in zip(tensors(sent), tensors(arrived), strict=True))
    assert len(tensors(arrived)) == 4 + 5 + 3 + 2


def test_a_batch_holds_its_memory_and_no_file_after_it_is_gone() -> None:
    def open_files() -> int:
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208

    def batch() -> Batch:
        ids = torch.arange(10).view(2, 5)
        return Batch(("a", "b"), ids, torch.ones(2, 5), ids[0], ids[:0], None, None)

    first = travelled(batch())
    before = open_files()
    assert [travelled(batch()).input_ids.sum().item() for _ in range(20)] == [45] * 20
    assert open_files() <= before
    assert torch.equal(first.input_ids, batch().input_ids)  # while others came and went
    first.input_ids.add_(1)  # writable, as a batch read in this process is
