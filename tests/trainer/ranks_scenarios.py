"""What two ranks do, started by torchrun from test_distributed.py: writes one JSON file.

Usage: torchrun --nproc_per_node 2 ranks_scenarios.py PLAN.json OUT.json

The plan lists runs in order: `{"name", "recipe", "out", "stop_after", "poison"}`. Each is a call of
`train`; `stop_after` stands for a kill after that step, `poison` puts NaN into one rank.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from medalign.trainer.distributed.engine import Engine
from medalign.trainer.distributed.ranks import Ranks
from medalign.trainer.loop import Step, TrainingDivergedError
from medalign.trainer.machine import quiet_libraries
from medalign.trainer.recipe.recipe import Recipe
from medalign.trainer.train import train


class StopHereError(Exception):
    """Stands for a kill between two steps; raised on all ranks."""


def poisoned(kind: str, step: int, calls: dict[str, int]) -> dict[str, Callable[..., Any]]:
    """Engine methods that put NaN into rank 1 alone, in the second micro-step of `step`."""
    forward, backward = Engine.__call__, Engine.backward
    at = 2 * step

    def bad_forward(self: Engine, *args: Any) -> tuple[torch.Tensor, torch.Tensor]:
        calls["n"] += 1
        loss, terms = forward(self, *args)
        hit = kind == "loss" and calls["n"] == at and self.ranks.rank == 1
        return loss, terms * (float("nan") if hit else 1.0)

    def bad_backward(self: Engine, loss: torch.Tensor) -> None:
        hit = kind == "gradient" and calls["n"] == at and self.ranks.rank == 1
        backward(self, loss * (float("inf") if hit else 1.0))

    return {"__call__": bad_forward, "backward": bad_backward}


def weights_of(engine: Engine) -> dict[str, torch.Tensor]:
    state = engine.state()
    return {k: v for k, v in state.items() if k.startswith("param.")}


class Faults:
    """Engine methods with the plan's faults in them, in place while entered."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self.accumulation = plan["recipe"]["data"]["accumulation"]
        self.stop_after = plan.get("stop_after")
        self.poison = plan.get("poison")
        self.micro_steps = 0
        self.engine: Engine | None = None
        self.before: dict[str, torch.Tensor] = {}
        self._original = (Engine.__call__, Engine.backward, Engine.step)

    def __enter__(self) -> "Faults":
        _, _, step = self._original

        def counted(engine: Engine) -> None:
            step(engine)
            self.engine = engine
            self.micro_steps += 1
            if self.poison and self.micro_steps == self.accumulation * (self.poison["step"] - 1):
                self.before = weights_of(engine)
            if self.stop_after and self.micro_steps == self.accumulation * self.stop_after + 1:
                raise StopHereError  # in the middle of the next step's accumulation

        methods: dict[str, Any] = {"step": counted}
        if self.poison:
            methods |= poisoned(self.poison["kind"], self.poison["step"], {"n": 0})
        for name, method in methods.items():
            setattr(Engine, name, method)
        return self

    def __exit__(self, *_: object) -> None:
        for name, method in zip(("__call__", "backward", "step"), self._original, strict=True):
            setattr(Engine, name, method)

    def untouched(self) -> bool:
        """Whether all parameters are what they were before the poisoned step."""
        assert self.engine is not None
        after = weights_of(self.engine)
        return after.keys() == self.before.keys() and all(
            torch.equal(self.before[name], after[name]) for name in after
        )


def run(plan: dict[str, Any]) -> dict[str, Any]:
    steps: list[dict[str, Any]] = []

    def report(step: Step, _of: int) -> None:
        steps.append({name: getattr(step, name) for name in Step.__slots__})

    recipe, out = Recipe.model_validate(plan["recipe"]), Path(plan["out"])
    found: dict[str, Any] = {"steps": steps}
    with Faults(plan) as faults:
        try:
            train(recipe, plan["cache"], out, say=lambda _: None, report=report)
        except StopHereError:
            found["stopped"] = True
        except TrainingDivergedError as error:
            found |= {"error": str(error), "untouched": faults.untouched()}
    return found


def main() -> None:
    quiet_libraries()
    torch.set_num_threads(1)
    plans = json.loads(Path(sys.argv[1]).read_text())
    results = {plan["name"]: run(plan) for plan in plans}
    ranks = Ranks()
    errors = ranks.gather({name: found.get("error") for name, found in results.items()})
    if ranks.rank == 0:
        Path(sys.argv[2]).write_text(json.dumps({"runs": results, "errors": errors}))


if __name__ == "__main__":
    main()
