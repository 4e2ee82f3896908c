"""Write and read a checkpoint: adapter and training state. No pickles.

A checkpoint holds whole float32 parameters and Adam moments by parameter name, so it does not
depend on the number of ranks or the ZeRO stage that wrote it.
"""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from ..distributed.engine import Engine
from ..machine import disk_errors
from ..student import save_adapter
from .best_checkpoint import MEASURED, Contest
from .checkpoint_files import check_bytes
from .folder import RunFolder


def save_checkpoint(
    folder: RunFolder,
    engine: Engine,
    student: Any,
    step: int,
    keep: int,
    about: dict[str, Any],
    measured: dict[str, Any] | None = None,
    contest: Contest | None = None,
) -> Path:
    """Write checkpoint `step-N` whole, then make it count. All ranks must call.

    Args:
        folder: of the run.
        engine: after the update of step N.
        student: the PEFT model inside the engine.
        step: N.
        keep: complete checkpoints to keep.
        about: recipe and cache identity for the adapter's `medalign.json`.
        measured: on held-out conversations at this step, or None.
        contest: which checkpoint is kept as the best; None keeps the newest only.

    Raises:
        OSError: the disk is full, say; earlier checkpoints are untouched.
    """
    state = engine.state()
    weights = {}
    for name, parameter in engine.parameters():
        if engine.ranks.rank == 0:
            weights[name] = state[f"param.{name}"].to(parameter.dtype)

    def write() -> Path:
        partial = folder.partial_checkpoint()
        save_file(state, partial / "state.safetensors")
        facts = {"step": step, "adam_step": engine.adam_step(), "ranks": engine.ranks.world}
        (partial / "progress.json").write_text(json.dumps(facts) + "\n")
        if measured is not None:
            (partial / MEASURED).write_text(json.dumps(measured) + "\n")
        save_adapter(student, weights, partial / "adapter", about)
        return folder.publish(partial, step, keep, contest)

    with disk_errors(folder.checkpoints):
        return engine.ranks.first(write)


def load_checkpoint(checkpoint: Path, engine: Engine) -> int:
    """Restore what `save_checkpoint` wrote. All ranks must call.

    Nothing else has to be restored: the order of the samples, the learning rate and the random
    numbers of a step follow from its number.

    Returns:
        The step to resume from.

    Raises:
        RecipeError: a file of the checkpoint is damaged.
    """
    check_bytes(checkpoint)
    facts = json.loads((checkpoint / "progress.json").read_text())
    engine.load(load_file(checkpoint / "state.safetensors"), facts["adam_step"])
    return int(facts["step"])
