"""A DeepSpeed engine around an objective, with state that knows neither ranks nor stages."""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..recipe.sections import OptimSection
from .ranks import Ranks, load_deepspeed
from .zero import MOMENTS, partition_of
from .zero_config import zero_stage


class Engine:
    """A DeepSpeed engine around an objective.

    Args:
        objective: module whose `requires_grad` parameters are trained.
        optim: learning rates and constants of AdamW.
        ranks: processes taking part.
        zero: DeepSpeed's configuration, from `zero_config`.
    """

    def __init__(
        self, objective: nn.Module, optim: OptimSection, ranks: Ranks, zero: Mapping[str, Any]
    ) -> None:
        self.ranks = ranks
        deepspeed = load_deepspeed()
        groups = _groups(objective, optim)
        adam = torch.optim.AdamW(groups, betas=optim.betas, weight_decay=optim.weight_decay)
        self._base_rates = [float(group["lr"]) for group in groups]
        self.engine, self.optimizer, _, _ = deepspeed.initialize(
            model=objective,
            optimizer=adam,
            # DeepSpeed keeps the mapping it gets and may write into it.
            config=copy.deepcopy(dict(zero)),
        )
        self._named = [(n, p) for n, p in objective.named_parameters() if p.requires_grad]
        self._partition = partition_of(zero_stage(zero), self.optimizer, deepspeed)

    def __call__(self, *args: Any) -> tuple[Tensor, Tensor]:
        """Run the objective's forward."""
        loss, terms = self.engine(*args)
        return loss, terms

    def backward(self, loss: Tensor) -> None:
        """Differentiate one micro-step."""
        self.engine.backward(loss)

    def step(self) -> None:
        """End a micro-step; the last of a step updates the parameters."""
        self.engine.step()

    def set_rate(self, factor: float) -> None:
        """Set every group's learning rate to its own base times `factor`."""
        for group, base in zip(self.optimizer.param_groups, self._base_rates, strict=True):
            group["lr"] = base * factor

    def gradient_norms(self) -> dict[str, float]:
        """L2 norm of each group's gradient before clipping, over all ranks. All ranks must call.

        To be called after the last backward pass of a step and before `step`, which lets a step
        be refused before anything was updated.
        """
        names = [str(group["name"]) for group in self.optimizer.param_groups]
        squares = {name: torch.zeros((), dtype=torch.float64) for name in names}
        for name, part in self._partition.gradients():
            norm = torch.linalg.vector_norm(part, dtype=torch.float32)
            squares[name] = squares[name].to(norm.device) + norm.double().square()
        totals = self.ranks.sum([float(squares[name]) for name in names])
        return {name: total**0.5 for name, total in zip(names, totals, strict=True)}

    def parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Trained parameters by name, as the model computes with them; in parts under stage 3."""
        yield from self._named

    def state(self) -> dict[str, Tensor]:
        """Float32 parameters and Adam moments by name, whole, on the CPU of rank 0.

        All ranks must call; the others get an empty dict.
        """
        self._partition.begin()
        state = {}
        for name, parameter in self._named:
            for key in ("param", *MOMENTS):
                value = self._partition.get(parameter, key)
                if self.ranks.rank == 0:
                    state[f"{key}.{name}"] = value.detach().to("cpu", torch.float32, copy=True)
        return state

    def adam_step(self) -> int:
        """Updates that Adam has counted."""
        entries = self._partition.adam.state.values()
        steps = [int(entry["step"]) for entry in entries if "step" in entry]
        return steps[0] if steps else 0

    def load(self, state: dict[str, Tensor], adam_step: int) -> None:
        """Restore what `state` gave, into any stage and number of ranks. All ranks must call.

        Raises:
            KeyError: a trained parameter has no entry.
        """
        self._partition.begin()
        for name, parameter in self._named:
            for key in ("param", *MOMENTS):
                self._partition.set(parameter, key, state[f"{key}.{name}"].to(self.ranks.device))
        for entry in self._partition.adam.state.values():
            # A tensor each: a shared one would advance once for every entry.
            entry["step"] = torch.tensor(float(adam_step))


def _groups(objective: nn.Module, optim: OptimSection) -> list[dict[str, Any]]:
    rates = {
        "lora": optim.lr,
        "projector": optim.projector_lr,
        "rotation": optim.lr if optim.rotation_lr is None else optim.rotation_lr,
    }
    members: dict[str, list[Tensor]] = {name: [] for name in rates}
    for name, parameter in objective.named_parameters():
        if parameter.requires_grad:
            members[group_of(name)].append(parameter)
    return [{"params": p, "lr": rates[n], "name": n} for n, p in members.items() if p]


def group_of(name: str) -> str:
    """Which of lora, projector and rotation a parameter belongs to."""
    if "visual_rotation" in name:
        return "rotation"
    # PEFT trains whole modules, W and the projector, under this name.
    return "projector" if "modules_to_save" in name else "lora"
