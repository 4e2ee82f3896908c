"""Write and read a checkpoint: adapter, training state, random number generators. No pickles.

A checkpoint holds whole float32 parameters and Adam moments by parameter name, so it does not
depend on the number of ranks or the ZeRO stage that wrote it.
"""

import errno
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from .contest import MEASURED, Contest
from .engine import Engine, Ranks
from .run_folder import RunFolder, check_bytes
from .student import save_adapter


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
    generators = engine.ranks.gather(_generators())

    def write() -> Path:
        partial = folder.partial_checkpoint()
        save_file(state, partial / "state.safetensors")
        save_file(
            {
                f"{rank}.{name}": value
                for rank, g in enumerate(generators)
                for name, value in g.items()
            },
            partial / "generators.safetensors",
        )
        facts = {"step": step, "adam_step": engine.adam_step(), "ranks": engine.ranks.world}
        (partial / "progress.json").write_text(json.dumps(facts) + "\n")
        if measured is not None:
            (partial / MEASURED).write_text(json.dumps(measured) + "\n")
        save_adapter(student, dict(engine.parameters()), partial / "adapter", about)
        return folder.publish(partial, step, keep, contest)

    try:
        return engine.ranks.first(write)
    except SafetensorError as error:
        # safetensors has an error type of its own for what the file system says.
        full = "No space left" in str(error)
        number = errno.ENOSPC if full else errno.EIO
        where = str(folder.checkpoints)
        raise OSError(number, "no space left" if full else str(error), where) from error


def load_checkpoint(checkpoint: Path, engine: Engine) -> int:
    """Restore what `save_checkpoint` wrote. All ranks must call.

    Random number generators are restored when the number of ranks is the same; the order of the
    samples follows from the step alone.

    Returns:
        The step to go on from.

    Raises:
        RecipeError: a file of the checkpoint is damaged.
    """
    check_bytes(checkpoint)
    facts = json.loads((checkpoint / "progress.json").read_text())
    engine.load(load_file(checkpoint / "state.safetensors"), facts["adam_step"])
    if facts["ranks"] == engine.ranks.world:
        _restore_generators(load_file(checkpoint / "generators.safetensors"), engine.ranks)
    return int(facts["step"])


def _generators() -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _restore_generators(states: dict[str, Tensor], ranks: Ranks) -> None:
    torch.set_rng_state(states[f"{ranks.rank}.cpu"])
    cuda = states.get(f"{ranks.rank}.cuda")
    if cuda is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(cuda)
