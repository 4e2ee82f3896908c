"""Is a student's folder whole, and do its parts fit together?"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ..doctor.check import Check
from ..student import load_base
from ..students.spec import StudentError, StudentSpec, first_line, read_config, read_student
from .check_record import check_record
from .check_text import check_text
from .check_weights import check_weights
from .errors import ConvertError, reason
from .families import ORIGINALS
from .guard import guarded
from .stage import Stage
from .workplace import RECORD


def check_student(folder: Path, stage: Stage, *, forward: bool = False) -> list[Check]:
    """Look at every file of a student; the model is held only for `forward`.

    Args:
        folder: in Hugging Face format.
        stage: told how far it is.
        forward: also load the model and let it look at a black image.

    Raises:
        ConvertError: the folder is no Llava at all.
    """
    config = _config(folder)
    checks = [guarded("config", lambda: _settings(folder, config))]
    checks += check_weights(folder, config, stage)
    if (folder / RECORD).is_file():
        checks.append(guarded("conversion", lambda: check_record(folder, stage)))
    try:
        spec = read_student(folder)
    except Exception as error:  # a folder may hold anything
        checks.append(Check("processor", "failed", reason(error), "mend or copy that file"))
        return checks
    checks += check_text(folder, config, spec)
    if forward and all(check.status != "failed" for check in checks):
        checks.append(guarded("forward", lambda: _forward(folder, spec)))
    return checks


def lines(checks: list[Check]) -> Iterator[str]:
    """Checks as text for a terminal."""
    width = max(len(check.name) for check in checks)
    for check in checks:
        advice = f"; {check.advice}" if check.advice else ""
        yield f"{check.status:<7}  {check.name:<{width}}  {check.text}{advice}"
        for detail in check.details:
            yield f"{'':{width + 11}}{detail}"


def _config(folder: Path) -> Any:
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
    except (OSError, ValueError, KeyError, TypeError):
        kind = None
    if kind == "medalign_llava":
        raise ConvertError(
            f"{folder} is an export with a rotation and code of its own; it was compared with its "
            "run when it was exported (README.md says how), and this check reads plain students"
        )
    original = next((each for each in ORIGINALS.values() if each.model_type == kind), None)
    if original is not None:
        raise ConvertError(
            f"{folder} is {original.title} as it was published; convert it first: medalign student "
            f"convert {folder} --family {original.name} --out DIR"
        )
    try:
        config = read_config(folder)
    except StudentError as error:
        raise ConvertError(str(error)) from error
    if config.model_type != "llava":
        raise ConvertError(
            f"{folder} is a {config.model_type!r} student; this check knows 'llava' alone, for the "
            f"others there is: medalign doctor --student {folder}"
        )
    return config


def _settings(folder: Path, config: Any) -> Check:
    layer, layers = config.vision_feature_layer, config.vision_config.num_hidden_layers
    if not isinstance(layer, int) or not -layers - 1 <= layer <= layers:
        text = f"vision_feature_layer is {layer}, the vision tower has {layers} layers"
        return Check("config", "failed", text, f"mend {folder / 'config.json'}; LLaVA takes -2")
    text = (
        f"llava with {config.text_config.model_type}, {config.text_config.num_hidden_layers} "
        f"layers, {config.vision_config.model_type} of {layers} layers, hidden state {layer}"
    )
    if layer != -2:
        return Check("config", "warning", text, "LLaVA's own models take hidden state -2")
    return Check("config", "ok", text)


def _forward(folder: Path, spec: StudentSpec) -> Check:
    encoder = spec.encoder
    text = f"{encoder.image_token * spec.grid.size}\nWhat is shown?"
    ids = torch.tensor([encoder.tokenizer(text).input_ids])
    side = spec.image_size
    try:
        model = load_base(folder, torch.float32)
        with torch.inference_mode():
            logits = model(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                pixel_values=torch.zeros(1, 3, side, side),
            ).logits
    except (StudentError, RuntimeError, ValueError) as error:
        return Check("forward", "failed", first_line(error), "convert or copy the folder again")
    if not bool(torch.isfinite(logits).all()):
        return Check("forward", "failed", "logits are not finite", "the weights are damaged")
    return Check("forward", "ok", f"{ids.shape[1]:,} tokens, all logits finite, in float32")
