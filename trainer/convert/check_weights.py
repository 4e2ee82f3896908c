"""Do a student's tensors fit its config.json, and are their values sound?"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

from ..amounts import counted
from ..doctor.check import Check, first
from ..unloaded import unloaded_model
from .describe import name_of
from .errors import ConvertError
from .guard import guarded
from .names import HEAD, bare, reason_unused
from .plan import FLOATS
from .shard import look, parts_of
from .stage import Stage
from .weights import Stored, Weights

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
