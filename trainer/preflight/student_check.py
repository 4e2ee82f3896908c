"""Is a student's folder whole, and do its parts fit together? Asked by three commands.

`student check` reads every byte; `doctor` and `train` look at what takes a moment: settings, the
headers of the weight files, tokenizer, template.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any, Final

import torch

from ...pipeline.hygiene.finding import Check, first, guarded
from ...runtime.files import sha256_file
from ..convert.checkpoint_families import ORIGINALS
from ..convert.checkpoint_weights import Stored, Weights
from ..convert.describe import name_of
from ..convert.errors import ConvertError, Stage, read_object, reason
from ..convert.output_folder import RECORD
from ..convert.safetensors_writer import look, parts_of
from ..convert.tensor_plan import FLOATS, HEAD, bare, reason_unused
from ..machine import counted
from ..student import load_base, unloaded_model
from ..students.spec import StudentError, StudentSpec, first_line, read_config, read_student
from .template_check import check_text

_AGAIN: Final = "copy or convert the folder again"
_MEND: Final = "mend or copy the file that is at fault"


def check_student(folder: Path, stage: Stage, *, forward: bool = False) -> list[Check]:
    """Look at every byte of a student; the model is held only for `forward`.

    Args:
        folder: in Hugging Face format.
        stage: shows how far it is.
        forward: also load the model and let it look at a black image.

    Raises:
        ConvertError: the folder is no student at all.
    """
    config = _config(folder)
    checks = [*guarded("config", lambda: _settings(folder, config), _MEND)]
    checks += _weights(folder, config, stage)
    if (folder / RECORD).is_file():
        checks += guarded("conversion", lambda: _conversion(folder, stage), _MEND)
    try:
        spec = read_student(folder)
    except Exception as error:  # a folder may hold anything
        return [*checks, Check("processor", "failed", reason(error), "mend or copy that file")]
    checks += check_text(folder, config, spec)
    if forward and all(check.status != "failed" for check in checks):
        checks += guarded("forward", lambda: _forward(folder, spec), _MEND)
    return checks


def quick_checks(spec: StudentSpec) -> Iterator[Check]:
    """Make the checks that take a moment: no tensor is read.

    Args:
        spec: of the student, which says that config.json and the processor can be read.
    """
    yield from checks_without_text(spec.path)
    yield from check_text(spec.path, read_config(spec.path), spec)


def checks_without_text(folder: Path) -> Iterator[Check]:
    """Make those of the quick checks that need no tokenizer; none without a config.json to read."""
    try:
        config = read_config(folder)
    except StudentError:
        return
    yield from guarded("config", lambda: _settings(folder, config), _MEND)
    for check in _weights(folder, config, None):
        # Programs that read doctor's --json know it by this name.
        yield replace(check, name="weights") if check.name == "tensors" else check


def refuse_unfit(spec: StudentSpec) -> None:
    """Refuse a student that fails one of the quick checks, before anything is loaded.

    Raises:
        StudentError: the first failure, and what to do about it.
    """
    for check in quick_checks(spec):
        if check.status == "failed":
            cases = f" ({'; '.join(check.details)})" if check.details else ""
            raise StudentError(f"{spec.path}: {check.name}: {check.text}{cases}; {check.advice}")


def _config(folder: Path) -> Any:
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        kind = None
    if kind == "medalign_llava":
        raise ConvertError(
            f"{folder} is an export with a rotation and code of its own; it was compared with its "
            "run when it was exported (README.md says how), and this check reads plain students"
        )
    original = next((family for family in ORIGINALS.values() if family.model_type == kind), None)
    if original is not None:
        raise ConvertError(
            f"{folder} is {original.title} as it was published; convert it first: medalign student "
            f"convert {folder} --family {original.name} --out DIR"
        )
    try:
        return read_config(folder)
    except StudentError as error:
        raise ConvertError(str(error)) from error


def _settings(folder: Path, config: Any) -> Check:
    text = (
        f"{config.model_type} with {config.text_config.model_type}, "
        f"{config.text_config.num_hidden_layers} layers"
    )
    if config.model_type != "llava":
        return Check("config", "ok", text)
    layer, layers = config.vision_feature_layer, config.vision_config.num_hidden_layers
    if not isinstance(layer, int) or not -layers - 1 <= layer <= layers:
        text = f"vision_feature_layer is {layer}, the vision tower has {layers} layers"
        return Check("config", "failed", text, f"mend {folder / 'config.json'}; LLaVA takes -2")
    text += f", {config.vision_config.model_type} of {layers} layers, hidden state {layer}"
    if layer != -2:
        return Check("config", "warning", text, "LLaVA's own models take hidden state -2")
    return Check("config", "ok", text)


def _weights(folder: Path, config: Any, stage: Stage | None) -> Iterator[Check]:
    """Compare the headers of the weight files with config.json; with `stage`, read all values."""
    try:
        weights = Weights.open(folder)
    except (ConvertError, OSError) as error:
        yield Check("tensors", "failed", str(error), _AGAIN)
        return
    if weights is None:
        yield Check("tensors", "failed", f"{folder} holds no weights", _AGAIN)
        return
    stored = weights.tensors
    yield from guarded("tensors", lambda: _tensors(folder, config, stored), _MEND)
    yield from guarded("dtype", lambda: _dtypes(config, stored), _MEND)
    if stage is not None:
        yield from guarded("values", lambda: _values(weights, stage), _MEND)


def _tensors(folder: Path, config: Any, stored: Mapping[str, Stored]) -> Check:
    model = unloaded_model(folder)
    needed = {
        bare(name): (name, tuple(tensor.shape)) for name, tensor in model.state_dict().items()
    }
    if config.tie_word_embeddings:
        needed.pop(bare(HEAD), None)
    there = {bare(name): (name, tensor.shape) for name, tensor in stored.items()}
    wrong = [f"missing: {name}" for key, (name, _) in needed.items() if key not in there]
    wrong += [
        f"shape of {there[key][0]}: {there[key][1]}, config.json needs {shape}"
        for key, (_, shape) in needed.items()
        if key in there and there[key][1] != shape
    ]
    wrong += [
        f"unexpected: {name}"
        for key, (name, _) in there.items()
        if key not in needed and not _harmless(name, config)
    ]
    if wrong:
        text = f"{counted(len(wrong), 'problem')} against what config.json needs"
        return Check("tensors", "failed", text, _AGAIN, first(wrong))
    numbers = sum(prod(tensor.shape) for tensor in stored.values())
    files = {tensor.file for tensor in stored.values()}
    text = (
        f"{counted(len(stored), 'tensor')}, {numbers:,} parameters, in "
        f"{counted(len(files), 'file')}, as config.json needs them"
    )
    if any(file.suffix != ".safetensors" for file in files):
        return Check("tensors", "warning", f"{text}; pickled", "save them as safetensors")
    return Check("tensors", "ok", text)


def _harmless(name: str, config: Any) -> bool:
    tied = config.tie_word_embeddings and bare(name) == bare(HEAD)
    return bool(tied) or reason_unused(name) is not None


def _dtypes(config: Any, stored: Mapping[str, Stored]) -> Check:
    counts = Counter(name_of(tensor.dtype) for tensor in stored.values())
    text = ", ".join(f"{name} x {count}" for name, count in sorted(counts.items()))
    whole = [
        f"{name} in {tensor.file.name} is stored as {name_of(tensor.dtype)}"
        for name, tensor in stored.items()
        if tensor.dtype not in FLOATS and reason_unused(name) is None
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
    with stage("reading tensors", total) as advance:
        for name, stored in weights.tensors.items():
            finite, alive = _look(weights, name, advance)
            if not finite:
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


def _look(weights: Weights, name: str, advance: Callable[[int], None]) -> tuple[bool, bool]:
    """Whether all values are finite, and any is not zero."""
    finite, alive = True, False
    for part in parts_of(weights.read(name)):
        part_finite, part_alive = look(part)
        finite, alive = finite and part_finite, alive or part_alive
        advance(part.nbytes)
    return finite, alive


def _conversion(folder: Path, stage: Stage) -> Check:
    """Compare every file with the checksums of its conversion."""
    try:
        title, files = _recorded(folder / RECORD)
    except (ConvertError, OSError) as error:
        return Check("conversion", "failed", str(error), "convert again, or copy the folder again")
    changed = []
    with stage("checksums", sum(file["bytes"] for file in files.values())) as advance:
        for name, file in files.items():
            path = folder / name
            if not path.is_file():
                changed.append(f"{name} is missing")
            elif sha256_file(path, advance) != file["sha256"]:
                changed.append(f"{name} is not as it was converted")
    if changed:
        lost = any(line.startswith("model") or line.endswith("missing") for line in changed)
        text = f"{len(changed)} of {len(files)} files differ from {RECORD}"
        advice = "convert again, or copy the folder again" if lost else "right if you changed them"
        return Check("conversion", "failed" if lost else "warning", text, advice, tuple(changed))
    return Check("conversion", "ok", f"{title}: all {len(files)} files as they were converted")


def _recorded(path: Path) -> tuple[str, dict[str, Mapping[str, Any]]]:
    """What was converted, and size and checksum of every file."""
    values = read_object(path)
    files: dict[str, Mapping[str, Any]] = {}
    for key in ("weights", "others"):
        listed = values.get(key)
        if not isinstance(listed, dict) or not listed:
            raise ConvertError(f"{path} lists no files under {key}")
        files |= listed
    for name, file in files.items():
        sized = isinstance(file, dict) and isinstance(file.get("bytes"), int)
        if not sized or not isinstance(file.get("sha256"), str):
            raise ConvertError(f"{path}: {name} has no size and checksum")
    title = values.get("title")
    if not isinstance(title, str):
        raise ConvertError(f"{path} does not say its title, so it is not as it was written")
    return title, files


def _forward(folder: Path, spec: StudentSpec) -> Check:
    if spec.family.model_type != "llava":
        text = f"not made: of {spec.family.model_type} students it is the first step that tells"
        return Check("forward", "warning", text, "medalign train --plan takes real steps")
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
