"""Chat templates of the paper's students, as Jinja that `apply_chat_template` runs."""

from typing import Final

VICUNA_SYSTEM: Final = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)

# A message's content is text with <image> in place, or Hugging Face's list of parts.
_CONTENT = """\
{%- macro text(content) -%}
{%- if content is string -%}{{ content }}
{%- else -%}{%- for part in content -%}
{%- if part.type == 'image' -%}{{ '<image>\\n' }}{%- else -%}{{ part.text }}{%- endif -%}
{%- endfor -%}{%- endif -%}
{%- endmacro -%}
"""


def _roles(user: str, assistant: str, end: str) -> str:
    return (
        _CONTENT
        + "{%- if messages[0].role == 'system' -%}{{ text(messages[0].content) }}"
        + "{%- else -%}{{ "
        + repr(VICUNA_SYSTEM)
        + " }}{%- endif -%}"
        + "{%- for message in messages -%}"
        + "{%- if message.role == 'user' -%}{{ ' "
        + user
        + ": ' + text(message.content) }}"
        + "{%- elif message.role == 'assistant' -%}"
        + "{{ ' "
        + assistant
        + ": ' + text(message.content) + '"
        + end
        + "' }}{%- endif -%}"
        + "{%- endfor -%}"
        + "{%- if add_generation_prompt -%}{{ ' "
        + assistant
        + ":' }}{%- endif -%}"
    )


VICUNA_V1: Final = _roles("USER", "ASSISTANT", "</s>")
"""LLaVA-Med-1.5: `{system} USER: <image>\\n{question} ASSISTANT: {answer}</s>`."""

HUATUO: Final = _roles("<|user|>", "<|assistant|>", "<|endoftext|>")
"""HuatuoGPT-Vision-7B in the authors' runs: the same shape with its own role names."""
