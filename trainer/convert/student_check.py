"""Is a student's folder whole, and do its parts fit together?"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch

from ...runtime.files import sha256_file
from ..machine import counted
from ..preflight.finding import Check, first
from ..student import load_base, unloaded_model
from ..students.spec import StudentError, StudentSpec, first_line, read_config, read_student
from .checkpoint_families import ORIGINALS
from .checkpoint_weights import Stored, Weights
from .describe import name_of
from .errors import ConvertError, Stage, read_object, reason
from .output_folder import RECORD
from .safetensors_writer import look, parts_of
from .template_check import check_text, guarded
from .tensor_plan import FLOATS, HEAD, bare, reason_unused


def check_record(folder: Path, stage: Stage) -> Check:
    """Compare every file with the checksums of its conversion.

    Args:
        folder: of the student, with a conversion.json.
        stage: told how far it is.
    """
    try:
        title, files = _record(folder / RECORD)
    except (ConvertError, OSError) as error:
        return Check("conversion", "failed", str(error), "convert again, or copy the folder again")
    changed = []
    with stage("checksums", sum(file["bytes"] for file in files.values())) as told:
        for name, file in files.items():
            path = folder / name
            if not path.is_file():
                changed.append(f"{name} is missing")
            elif sha256_file(path, told) != file["sha256"]:
                changed.append(f"{name} is not as it was converted")
    if changed:
        lost = any(line.startswith("model") or line.endswith("missing") for line in changed)
        text = f"{len(changed)} of {len(files)} files differ from {RECORD}"
        advice = "convert again, or copy the folder again" if lost else "right if you changed them"
        return Check("conversion", "failed" if lost else "warning", text, advice, tuple(changed))
    return Check("conversion", "ok", f"{title}: all {len(files)} files as they were converted")


def _record(path: Path) -> tuple[str, dict[str, Mapping[str, Any]]]:
    """What was converted, and size and checksum of every file."""
    values = read_object(path)
    files: dict[str, Mapping[str, Any]] = {}
    for key in ("weights", "others"):
        listed = values.get(key)
        if not isinstance(listed, dict) or not listed:
            raise ConvertError(f"{path} lists no files under {key}")
        files |= listed
    for name, file in files.items():
        known = isinstance(file, dict) and isinstance(file.get("bytes"), int)
        if not known or not isinstance(file.get("sha256"), str):
            raise ConvertError(f"{path}: {name} has no size and checksum")
    title = values.get("title")
    if not isinstance(title, str):
        raise ConvertError(f"{path} does not say its title, so it is not as it was written")
    return title, files


_AGAIN = "copy or convert the folder again"


def check_weights(folder: Path, config: Any, stage: Stage) -> Iterator[Check]:
    """Compare names and shapes by the files' headers, then read every tensor once.

    Args:
        folder: of the student.
        config: of the student.
        stage: told how far the reading is.
    """
    try:
        weights = Weights.open(folder)
    except (ConvertError, OSError) as error:
        yield Check("tensors", "failed", str(error), _AGAIN)
        return
    if weights is None:
        yield Check("tensors", "failed", f"{folder} holds no weights", _AGAIN)
        return
    held = weights.tensors
    yield guarded("tensors", lambda: _names(folder, config, held))
    yield guarded("dtype", lambda: _dtypes(config, held))
    yield guarded("values", lambda: _values(weights, stage))


def _names(folder: Path, config: Any, held: Mapping[str, Stored]) -> Check:
    wanted = {
        bare(name): (name, tuple(tensor.shape))
        for name, tensor in unloaded_model(folder).state_dict().items()
    }
    if config.tie_word_embeddings:
        wanted.pop(bare(HEAD), None)
    found = {bare(name): (name, stored.shape) for name, stored in held.items()}
    wrong = [f"missing: {wanted[key][0]}" for key in wanted if key not in found]
    wrong += [
        f"shape of {found[key][0]}: {found[key][1]}, config.json needs {shape}"
        for key, (_, shape) in wanted.items()
        if key in found and found[key][1] != shape
    ]
    needless = [one for key, (one, _) in found.items() if key not in wanted]
    unknown = [f"unexpected: {name}" for name in needless if not _harmless(name, config)]
    numbers = sum(prod(stored.shape) for stored in held.values())
    if wrong or unknown:
        text = f"{counted(len(wrong) + len(unknown), 'problem')} against config.json"
        return Check("tensors", "failed", text, _AGAIN, first([*wrong, *unknown]))
    files = len({stored.file for stored in held.values()})
    text = (
        f"{counted(len(held), 'tensor')}, {numbers:,} parameters, in {counted(files, 'file')}, as "
        "config.json needs them"
    )
    return Check("tensors", "ok", text)


def _harmless(name: str, config: Any) -> bool:
    tied = config.tie_word_embeddings and bare(name) == bare(HEAD)
    return bool(tied) or reason_unused(name) is not None


def _dtypes(config: Any, held: Mapping[str, Stored]) -> Check:
    counts = Counter(name_of(stored.dtype) for stored in held.values())
    text = ", ".join(f"{name} x {count}" for name, count in sorted(counts.items()))
    whole = [
        f"{name} in {stored.file.name} is stored as {name_of(stored.dtype)}"
        for name, stored in held.items()
        if stored.dtype not in FLOATS and reason_unused(name) is None
    ]
    if whole:
        return Check("dtype", "failed", f"{text}: quantised or damaged", _AGAIN, first(whole))
    if len(counts) > 1:
        return Check("dtype", "warning", text, "loaded as one dtype, the others are rounded")
    if config.dtype is not None and name_of(config.dtype) not in counts:
        text = f"{text}, config.json says {name_of(config.dtype)}"
        return Check("dtype", "warning", text, "set dtype in config.json to that of the tensors")
    return Check("dtype", "ok", text)


def _values(weights: Weights, stage: Stage) -> Check:
    total = sum(prod(one.shape) * one.dtype.itemsize for one in weights.tensors.values())
    bad, zero = [], []
    with stage("reading tensors", total) as told:
        for name, stored in weights.tensors.items():
            sound, alive = _look(weights, name, told)
            if not sound:
                bad.append(f"{name} in {stored.file.name} has values that are not finite")
            elif not alive and len(stored.shape) > 1:
                zero.append(f"{name} in {stored.file.name} is all zero")
    if bad:
        text = f"{counted(len(bad), 'tensor')} with NaN or infinite values"
        return Check("values", "failed", text, _AGAIN, first(bad))
    if zero:
        text = f"tensors that are all zero: {len(zero)}"
        return Check("values", "warning", text, "were they ever trained?", first(zero))
    return Check("values", "ok", "every value finite, no matrix all zero")


def _look(weights: Weights, name: str, told: Callable[[int], None]) -> tuple[bool, bool]:
    """Whether all values are finite, and any is not zero."""
    sound, alive = True, False
    for part in parts_of(weights.read(name)):
        finite, some = look(part)
        sound, alive = sound and finite, alive or some
        told(part.nbytes)
    return sound, alive


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
