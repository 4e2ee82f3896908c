"""The original checkpoints that can be converted."""

from dataclasses import dataclass
from typing import Any, Final

from transformers import MistralConfig, Qwen2Config

from ..students.templates import HUATUO, VICUNA_V1


@dataclass(frozen=True, slots=True, kw_only=True)
class Original:
    """One kind of original checkpoint.

    Attributes:
        name: as `--family` has it.
        title: for people.
        model_type: in its config.json.
        text_config: class of its language model's configuration.
        chat_template: that it is used with.
        end_token: that ends an answer.
        pad_token: that fills up batches.
    """

    name: str
    title: str
    model_type: str
    text_config: Any
    chat_template: str
    end_token: str
    pad_token: str


LLAVA_MED: Final = Original(
    name="llava-med",
    title="LLaVA-Med-1.5",
    model_type="llava_mistral",
    text_config=MistralConfig,
    chat_template=VICUNA_V1,
    end_token="</s>",
    pad_token="<unk>",
)
HUATUO_VISION: Final = Original(
    name="huatuo-vision",
    title="HuatuoGPT-Vision-7B",
    model_type="llava_qwen2",
    text_config=Qwen2Config,
    chat_template=HUATUO,
    end_token="<|endoftext|>",
    pad_token="<|endoftext|>",
)
ORIGINALS: Final = {family.name: family for family in (LLAVA_MED, HUATUO_VISION)}
