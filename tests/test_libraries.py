"""What other libraries may change in any release, each thing once.

Where one of these fails, tests that stumble over the same `LibraryError` are skipped
(`conftest.py`): a release that breaks us shows as one named failure.
"""

import pytest
from transformers import (
    Gemma3ForConditionalGeneration,
    LlamaForCausalLM,
    LlavaForConditionalGeneration,
    MistralForCausalLM,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2ForCausalLM,
)

from medalign.eval.decoders.call import cache_keyword
from medalign.pipeline.tower import check_open_clip
from medalign.runtime.libraries import ADVICE, LibraryError, check_call, look_up

STUDENTS = [
    Gemma3ForConditionalGeneration,
    LlamaForCausalLM,
    LlavaForConditionalGeneration,
    MistralForCausalLM,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2ForCausalLM,
]
NAMES = [
    ("transformers", "transformers.conversion_mapping", "get_checkpoint_conversion_mapping"),
    ("transformers", "transformers.conversion_mapping", "register_checkpoint_conversion_mapping"),
    ("transformers", "transformers.modeling_utils", "ALL_ATTENTION_FUNCTIONS.register"),
    ("transformers", "transformers.models.llava.image_processing_llava", "LlavaImageProcessor"),
    (
        "transformers",
        "transformers.models.llava.image_processing_pil_llava",
        "LlavaImageProcessorPil",
    ),
    ("transformers", "transformers.integrations.deepspeed", "unset_hf_deepspeed_config"),
    ("deepspeed", "deepspeed", "initialize"),
    ("deepspeed", "deepspeed", "zero.GatheredParameters"),
    ("deepspeed", "deepspeed", "utils.lazy_init_hp_params_optimizer_state"),
    ("deepspeed", "deepspeed", "utils.safe_set_full_fp32_param"),
    ("deepspeed", "deepspeed", "utils.safe_set_full_optimizer_state"),
    ("deepspeed", "deepspeed", "utils.safe_set_local_fp32_param"),
    ("deepspeed", "deepspeed", "utils.safe_set_local_optimizer_state"),
]


def test_open_clip_builds_vision_towers_as_we_call_it() -> None:
    check_open_clip()


def test_transformers_takes_a_cache_by_a_keyword_that_we_know() -> None:
    assert {cache_keyword(model) for model in STUDENTS} <= {"cache", "past_key_values"}


@pytest.mark.parametrize(("library", "module", "name"), NAMES, ids=lambda text: str(text))
def test_a_library_still_has(library: str, module: str, name: str) -> None:
    look_up(library, module, name)


def test_a_name_that_is_gone_is_one_line_with_the_way_out() -> None:
    with pytest.raises(LibraryError) as failure:
        look_up("pytest", "pytest", "no.such_name")
    assert (
        str(failure.value)
        == f"pytest {pytest.__version__} has no pytest.no.such_name; {ADVICE} pytest"
    )


def test_a_module_that_is_gone_and_a_library_that_is_not_installed_are_named() -> None:
    with pytest.raises(LibraryError, match=r"^nowhere has no nowhere\.module\.name; install the"):
        look_up("nowhere", "nowhere.module", "name")


def test_a_function_that_takes_other_arguments_is_named() -> None:
    def build(width: int, *, depth: int) -> int:
        return width * depth

    check_call("pytest", build, ["depth"], positional=1)
    with pytest.raises(LibraryError, match=r"calls .*build in another way \(.*'heads'"):
        check_call("pytest", build, ["depth", "heads"], positional=1)
