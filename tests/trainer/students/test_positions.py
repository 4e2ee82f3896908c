from types import SimpleNamespace
from typing import Any

import pytest
from transformers import Gemma3TextConfig, LlamaConfig
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLTextConfig

from medalign.trainer.students.spec import positions_of


@pytest.mark.parametrize(
    ("kind", "rope", "wanted"),
    [
        (LlamaConfig, {"rope_type": "default"}, 4096),
        # lmsys/vicuna-7b-v1.5-16k names the positions before they were stretched by 4.
        (LlamaConfig, {"rope_type": "linear", "factor": 4.0}, 16384),
        # Qwen2.5's README names those before in both places, others those after in one.
        (
            LlamaConfig,
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048},
            8192,
        ),
        # Llama-3.1 names them after.
        (
            LlamaConfig,
            {
                "rope_type": "llama3",
                "factor": 8.0,
                "original_max_position_embeddings": 512,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
            },
            4096,
        ),
        (Qwen2_5_VLTextConfig, {"rope_type": "default", "mrope_section": [16, 24, 24]}, 4096),
        # Gemma-3 has one entry for every kind of layer, and names the positions after.
        (
            Gemma3TextConfig,
            {
                "full_attention": {"rope_type": "linear", "factor": 8.0},
                "sliding_attention": {"rope_type": "default"},
            },
            4096,
        ),
    ],
)
def test_positions_are_those_that_the_rotary_embedding_serves(
    kind: Any, rope: dict[str, Any], wanted: int
) -> None:
    config = kind(max_position_embeddings=4096, rope_parameters={"rope_theta": 1e4, **rope})
    assert positions_of(config) == wanted


def test_a_model_may_say_nothing_of_positions() -> None:
    assert positions_of(SimpleNamespace(hidden_size=32)) is None
