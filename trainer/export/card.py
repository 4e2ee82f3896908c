"""The model card of an export: what it is, what it was made of, whose licences it carries."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from .gate import Checked
from .provenance import Origin
from .samples import Manifest

_TERMS: Final = ("LICENSE", "LICENCE", "NOTICE", "COPYING", "USE_POLICY")


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """What a card tells.

    Attributes:
        origin: run, adapter and student.
        data: the run's manifest; None when it is gone.
        name: of the exported folder.
        layer: that W rotates; None for a plain Llava folder.
        checked: what the gate measured.
    """

    origin: Origin
    data: Manifest | None
    name: str
    layer: int | None
    checked: tuple[Checked, ...]

    def recipe(self) -> dict[str, Any]:
        """The recipe; of paths only the last name, since an export is published."""
        sections: dict[str, Any] = self.origin.recipe.settings()
        return {
            name: {key: _last_name(value) for key, value in section.items()}
            for name, section in sections.items()
        }


def _last_name(value: Any) -> Any:
    return Path(value).name if isinstance(value, str) and "/" in value else value


def model_card(card: Card, limit: float) -> str:
    """Write the README.md of an export.

    Args:
        card: what it tells.
        limit: of the gate, mean KL in nats a token.
    """
    head = {
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "license": _student_licence(card.origin.student) or "other",
        "tags": ["medalign", "llava", "lora"],
    }
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n",
        f"# {card.name}\n",
        "\n".join(_what(card)) + "\n",
        "## Use\n\n" + _use(card),
        "## Data and teacher\n\n" + "\n".join(_sources(card)) + "\n",
        "## Licences\n\n" + "\n".join(_licences(card)) + "\n",
        "## Is it the model that was trained?\n\n" + "\n".join(_gate(card, limit)) + "\n",
        "## Recipe\n\n```yaml\n" + yaml.safe_dump(card.recipe(), sort_keys=False) + "```\n",
    ]
    return "\n".join(parts)


def copy_terms(student: Path, folder: Path) -> None:
    """Bring the student's licence files along; some licences demand it of every copy."""
    for path in sorted(student.iterdir()):
        if path.is_file() and path.name.upper().startswith(_TERMS):
            shutil.copyfile(path, folder / path.name)


def _what(card: Card) -> Iterator[str]:
    origin, recipe = card.origin, card.origin.recipe
    state = "" if origin.finished else ", of a run that is not finished"
    frozen = "" if recipe.optim.projector_lr else "frozen "
    yield f"The Llava model `{origin.student.name}`, taught by medalign:"
    yield f"LoRA of rank {recipe.lora.rank} (merged), {frozen}projector,"
    if card.layer is None:
        yield f"no rotation. Step {origin.step}{state}."
    else:
        yield f"rotation I + W of the visual tokens at the input of decoder layer {card.layer}."
        yield f"Step {origin.step}{state}."
    quantised = origin.identity["recipe"]["student"].get("quantize", "none")
    if quantised != "none":
        yield f"Trained over {quantised} weights, merged into the weights before quantisation."
    yield ""
    yield "For research. It is no medical device, and nobody has tested it as one."


def _use(card: Card) -> str:
    trust = "" if card.layer is None else ", trust_remote_code=True"
    note = (
        "A plain Llava folder: servers that know Llava should serve it, such as "
        "`vllm serve DIR`, which was not run.\n"
        if card.layer is None
        else "The rotation cannot be merged into a plain Llava, so this folder brings its own code "
        "(`modeling_medalign_llava.py`), and servers that know Llava by name cannot serve it.\n"
    )
    return f"""\
```python
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained(DIR{trust}, dtype="auto")
processor = AutoProcessor.from_pretrained(DIR{trust}, backend="pil")
content = [{{"type": "image"}}, {{"type": "text", "text": "Which organ is shown?"}}]
messages = [{{"role": "user", "content": content}}]
text = processor.apply_chat_template(messages, add_generation_prompt=True)
image = Image.open(IMAGE).convert("RGB")
inputs = processor(text=text, images=image, return_tensors="pt").to(model.device, model.dtype)
answer = model.generate(**inputs, max_new_tokens=64, do_sample=False)
print(processor.decode(answer[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))
```

{note}
Images are 8-bit RGB. `backend="pil"` gives the pixels of the training bit for bit; those of
torchvision, the default, differ by a grey level or two. Prompts of a batch are padded on the left.
"""


def _sources(card: Card) -> Iterator[str]:
    origin = card.origin
    name = Path(origin.recipe.data.manifest or "unknown").name
    count = "" if card.data is None else f", {len(card.data.records)} conversations"
    yield f"- Manifest `{name}`{count}."
    if card.origin.metrics:
        measured = card.origin.metrics
        terms = ", ".join(
            f"{key} {measured[key]:.4g}"
            for key in ("lm", "vis", "att")
            if measured.get(key) is not None
        )
        yield f"- Step {measured['step']}, epoch {measured['epoch']:.3g}: {terms}."
    if origin.identity.get("cache") is None:
        yield "- No teacher cache: language-model loss alone."
        return
    cache = origin.environment.get("cache") or {}
    rows = f", {cache['rows']} images" if "rows" in cache else ""
    yield f"- Teacher cache of the expert `{origin.identity['expert']}`{rows}:"
    yield f"  fingerprint `{origin.identity['cache']}`,"
    yield f"  content `{origin.identity['cache_content']}`."


def _licences(card: Card) -> Iterator[str]:
    origin = card.origin
    yield "This model is made of the following, and their terms bind it:"
    yield ""
    yield f"- student `{origin.student.name}`: {_student_licence(origin.student) or 'not stated'}"
    if origin.identity.get("cache") is not None:
        licence = (origin.environment.get("cache") or {}).get("licence") or "not recorded"
        yield f"- expert `{origin.identity['expert']}`: {licence}"
    if card.data is None:
        yield "- data: not at hand when this was exported"
        return
    for name, records in sorted(card.data.licences.items(), key=lambda item: -item[1]):
        yield f"- data, {records} conversations: {name}"


def _gate(card: Card, limit: float) -> Iterator[str]:
    if not card.checked:
        yield "Not checked: the export was made with `--images-checked 0`."
        return
    yield "Logits of adapter, merged model and this folder, on conversations of the manifest"
    yield f"(allowed mean KL of merging: {limit:g} nats a token):"
    yield ""
    yield "| record | tokens | merged: max | merged: mean KL | exported: max | exported: mean KL |"
    yield "|---|---|---|---|---|---|"
    for one in card.checked:
        a, b = one.merged, one.exported
        yield (
            f"| {one.record} | {a.tokens} | {a.max_abs:.2g} | {a.kl:.2g} "
            f"| {b.max_abs:.2g} | {b.kl:.2g} |"
        )


def _student_licence(student: Path) -> str | None:
    licence = front_matter(student).get("license")
    return None if licence is None else str(licence)


def front_matter(folder: Path) -> dict[str, Any]:
    """The YAML keys at the head of a folder's README.md; empty where there are none."""
    try:
        text = (folder / "README.md").read_text(encoding="utf-8")
        head = yaml.safe_load(text.split("---")[1]) if text.startswith("---") else {}
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return head if isinstance(head, dict) else {}
