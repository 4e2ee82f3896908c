"""Load exports where medalign cannot be imported; run as `python -I alone.py PLACE ...`.

Each PLACE holds the export `out`, `inputs.safetensors` and `image.png`. Everything that a user
without medalign would try is done in this one process, because importing transformers is what
takes the time; what came out is written to `found.safetensors` and `found.json`.
"""

import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any


class Blocker:
    """Stands first in `sys.meta_path`, where editable installs look too."""

    def find_spec(self, name: str, *_where: Any) -> None:
        if name.split(".")[0] == "medalign":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def main(place: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline

    load: Any = AutoModelForImageTextToText.from_pretrained
    processor: Any = AutoProcessor
    folder, image = place / "out", place / "image.png"
    facts: dict[str, Any] = {"refused": ""}
    found: dict[str, Any] = {}
    rotated = "auto_map" in json.loads((folder / "config.json").read_text())
    trust = {"trust_remote_code": True} if rotated else {}
    try:
        load(folder)
    except ValueError as error:
        facts["refused"] = str(error)
    model, report = load(folder, output_loading_info=True, **trust)
    facts["report"] = {key: sorted(map(str, value)) for key, value in report.items() if value}
    model.eval()
    given = load_file(place / "inputs.safetensors")

    with torch.no_grad():
        found["logits"] = model(**given).logits
        text = {name: given[name][:1, -5:] for name in ("input_ids", "attention_mask")}
        found["text_only"] = model(**text).logits
        embedded = dict(given)
        embedded["inputs_embeds"] = model.get_input_embeddings()(embedded.pop("input_ids"))
        found["embedded"] = model(**embedded).logits
        found["tokens"] = model.generate(
            **given, do_sample=False, max_new_tokens=8, eos_token_id=None
        )
    found["lm_head"] = model.lm_head.weight.detach().clone()

    model.save_pretrained(place / "again")
    with torch.no_grad():
        found["again"] = load(place / "again", **trust).eval()(**given).logits

    start: Any = pipeline
    ask = start("image-text-to-text", model=str(folder), **trust)
    content = [{"type": "image", "url": str(image)}, {"type": "text", "text": "Which organ?"}]
    turns: Any = [{"role": "user", "content": content}]
    said: Any = ask(text=turns, max_new_tokens=4, do_sample=False)
    facts["said"] = said[0]["generated_text"][-1]["content"]

    made: Any = processor.from_pretrained(folder, backend="pil", **trust)
    facts["padding_side"] = made.tokenizer.padding_side
    code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, {"DIR": folder, "IMAGE": image})
    facts["card"] = printed.getvalue()

    facts["medalign"] = sorted(name for name in sys.modules if name.startswith("medalign"))
    save_file({k: v.contiguous() for k, v in found.items()}, place / "found.safetensors")
    (place / "found.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    sys.meta_path.insert(0, Blocker())
    try:
        import medalign  # noqa: F401
    except ModuleNotFoundError:
        pass
    else:
        raise AssertionError("medalign can be imported")
    for argument in sys.argv[1:]:
        main(Path(argument))
