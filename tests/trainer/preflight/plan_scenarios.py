"""What two ranks plan, started by torchrun from test_two_ranks.py: writes one JSON file a rank.

Usage: torchrun --nproc_per_node 2 plan_scenarios.py SETUP.json FOLDER

Each plan meets something on rank 1 alone; an outcome of a plan is what this rank was left with.
"""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from medalign.trainer.data.batch import Batch
from medalign.trainer.distributed.engine import Engine
from medalign.trainer.distributed.ranks import Ranks
from medalign.trainer.machine import quiet_libraries
from medalign.trainer.preflight import measure
from medalign.trainer.preflight import train_plan as attempt
from medalign.trainer.preflight.train_plan import make_plan
from medalign.trainer.recipe.recipe import Recipe
from medalign.trainer.train import read_ahead


def full(*_: Any) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


def changed(*given: Any) -> Iterator[Batch]:
    for batch in read_ahead(*given):
        yield replace(batch, refused=("image 3.png changed",))


FAULTS: dict[str, Callable[[], Any]] = {
    "little memory": lambda: patch.object(attempt, "free_memory_bytes", lambda: 1_000_000),
    "full in a step": lambda: patch.object(Engine, "__call__", full),
    "a changed image": lambda: patch.object(measure, "read_ahead", changed),
    "none": lambda: patch.object(attempt, "CPU_SHARE", attempt.CPU_SHARE),
}


def plan(fault: str, setup: dict[str, Any]) -> dict[str, Any]:
    recipe = Recipe.model_validate(setup["recipe"])
    rank = Ranks().rank
    with FAULTS[fault if rank else "none"]():
        try:
            made = make_plan(recipe, setup["cache"], Path(setup["out"]))
        except ValueError as error:
            return {"error": str(error)}
    if made is None:
        return {"ended": True}
    return {"not measured": made[1].not_measured, "world": made[1].run.world}


def main() -> None:
    quiet_libraries()
    torch.set_num_threads(1)
    setup = json.loads(Path(sys.argv[1]).read_text())
    found = {fault: plan(fault, setup) for fault in FAULTS}
    (Path(sys.argv[2]) / f"{Ranks().rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
