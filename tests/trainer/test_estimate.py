from collections.abc import Callable
from pathlib import Path

import numpy as np

from medalign.pipeline.manifest import read_manifest
from medalign.trainer.data.order import estimated_lengths
from medalign.trainer.students.spec import read_student


def test_lengths_follow_from_text_and_images_and_are_capped(
    dataset: Callable[..., tuple[Path, Path, Path]],
) -> None:
    long = [{"from": "human", "value": "é" * 40}, {"from": "gpt", "value": "b" * 4000}]
    extra = [{"id": "long", "conversations": long}]
    manifest, _, _ = dataset(images=1, records=1, extra=extra)
    # 7 + 1 + 17 characters of the placeholder, a line break and the question, 3 of the answer.
    assert estimated_lengths(read_manifest(manifest), 16, 512).tolist() == [16 + 28 // 4, 512]
    assert estimated_lengths(read_manifest(manifest), 16, 4096).tolist()[1] == (80 + 4000) // 4
    unknown = estimated_lengths(read_manifest(manifest), None, 4096).tolist()
    assert unknown == [1000 + 28 // 4, (80 + 4000) // 4]


def test_longer_conversations_have_more_tokens(
    dataset: Callable[..., tuple[Path, Path, Path]], students: Callable[..., Path]
) -> None:
    extra = [
        {
            "id": f"e{k}",
            "conversations": [
                {"from": "human", "value": "Which organ is shown? " * k},
                {"from": "gpt", "value": "the lungs " * k},
            ],
        }
        for k in range(1, 20)
    ]
    manifest, _, _ = dataset(images=2, records=4, extra=extra)
    records = read_manifest(manifest)
    encoder = read_student(students()).encoder
    counted = [len(encoder.training(record, 4096).input_ids) for record in records]
    guessed = estimated_lengths(records, encoder.tokens_per_image, 4096)
    assert np.corrcoef(counted, guessed)[0, 1] > 0.95
