"""Where ZeRO keeps a trained parameter, its Adam moments and its gradient, stage by stage.

Everything is given whole and by parameter, whatever the stage and the number of ranks, so that a
checkpoint fits any of them. `get` and `set` are collective: all ranks call them in one order.
"""

from collections.abc import Iterator
from typing import Any, Final, Protocol

import torch
from torch import Tensor

MOMENTS: Final = ("exp_avg", "exp_avg_sq")


class Partition(Protocol):
    """State of a DeepSpeed optimizer, by parameter."""

    @property
    def adam(self) -> torch.optim.Optimizer:
        """The AdamW inside."""

    def begin(self) -> None:
        """Make Adam's moments, which exist only after a first step."""

    def get(self, parameter: Any, key: str) -> Tensor:
        """Float32 `param`, `exp_avg` or `exp_avg_sq`, whole, in the parameter's shape."""

    def set(self, parameter: Any, key: str, value: Tensor) -> None:
        """Put `value` there, and where the model computes with it."""

    def gradients(self) -> Iterator[tuple[str, Tensor]]:
        """(group, this rank's part) after the last backward pass and before the update."""


def partition_of(stage: int, optimizer: Any, deepspeed: Any) -> Partition:
    """Choose by ZeRO stage.

    Args:
        stage: 0 to 3.
        optimizer: what `deepspeed.initialize` returned.
        deepspeed: the module.
    """
    if stage == 0:
        return Whole(optimizer)
    return Divided(optimizer, deepspeed) if stage < 3 else Sharded(optimizer, deepspeed)


class Whole:
    """Stage 0: every rank holds everything, in float32."""

    def __init__(self, adam: torch.optim.Optimizer) -> None:
        self.adam = adam

    def begin(self) -> None:
        """Make Adam's moments."""
        parameters = [p for group in self.adam.param_groups for p in group["params"]]
        _begin(self.adam, parameters)

    def get(self, parameter: Any, key: str) -> Tensor:
        """Read from the parameter itself and from Adam."""
        value = parameter if key == "param" else self.adam.state[parameter][key]
        assert isinstance(value, Tensor)
        return value

    def set(self, parameter: Any, key: str, value: Tensor) -> None:
        """Write into the parameter itself or into Adam."""
        with torch.no_grad():
            self.get(parameter, key).copy_(value)

    def gradients(self) -> Iterator[tuple[str, Tensor]]:
        """Whole gradients, which all ranks have in common: one rank's part is all of it."""
        if torch.distributed.get_rank() == 0:
            for group in self.adam.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        yield group["name"], parameter.grad


class Divided:
    """Stages 1 and 2: float32 masters and moments lie flat, a part of each group on each rank."""

    def __init__(self, zero: Any, deepspeed: Any) -> None:
        self.zero = zero
        self.deepspeed = deepspeed
        self.adam: torch.optim.Optimizer = zero.optimizer

    def begin(self) -> None:
        """Make Adam's moments, and link parameters to them.

        DeepSpeed links once, after the first group's update, when the other groups have no
        moments yet; so link again.
        """
        _begin(self.adam, self.zero.single_partition_of_fp32_groups)
        link = self.deepspeed.utils.lazy_init_hp_params_optimizer_state
        flats = self.zero.single_partition_of_fp32_groups
        for low, flat in zip(self.zero.bit16_groups, flats, strict=True):
            link(low, flat, self.adam.state)

    def get(self, parameter: Any, key: str) -> Tensor:
        """Gather from all ranks."""
        return _gathered(self.deepspeed, parameter, key)

    def set(self, parameter: Any, key: str, value: Tensor) -> None:
        """Write this rank's part of the master, and the parameter itself."""
        if key == "param":
            with torch.no_grad():
                parameter.copy_(value)
            self.deepspeed.utils.safe_set_full_fp32_param(parameter, value)
        else:
            self.deepspeed.utils.safe_set_full_optimizer_state(parameter, value, key)

    def gradients(self) -> Iterator[tuple[str, Tensor]]:
        """Averaged gradients of this rank's part; in host memory when the optimizer is there."""
        for index, group in enumerate(self.adam.param_groups):
            if self.zero.cpu_offload:
                yield group["name"], self.zero.single_partition_of_fp32_groups[index].grad
            else:
                for part in self.zero.averaged_gradients[index]:
                    yield group["name"], part


class Sharded:
    """Stage 3: parameters lie in parts too, each cut into as many pieces as there are ranks."""

    def __init__(self, zero: Any, deepspeed: Any) -> None:
        self.zero = zero
        self.deepspeed = deepspeed
        self.adam: torch.optim.Optimizer = zero.optimizer

    def begin(self) -> None:
        """Make Adam's moments."""
        _begin(self.adam, self.zero.fp32_partitioned_groups_flat)

    def get(self, parameter: Any, key: str) -> Tensor:
        """Gather from all ranks."""
        return _gathered(self.deepspeed, parameter, key)

    def set(self, parameter: Any, key: str, value: Tensor) -> None:
        """Write this rank's piece, and for `param` the one that the model gathers from."""
        piece = self._piece(parameter, value)
        if key != "param":
            self.deepspeed.utils.safe_set_local_optimizer_state(parameter, piece, key)
            return
        self.deepspeed.utils.safe_set_local_fp32_param(parameter, piece)
        with self.deepspeed.zero.GatheredParameters([parameter], modifier_rank=0), torch.no_grad():
            parameter.copy_(value)

    def gradients(self) -> Iterator[tuple[str, Tensor]]:
        """Averaged gradients of this rank's pieces; in host memory when the optimizer is there."""
        names = [group["name"] for group in self.adam.param_groups]
        for index, flat in enumerate(self.zero.fp32_partitioned_groups_flat):
            name = names[self.zero.sub_group_to_group_id[index]]
            if self.zero.offload_optimizer:
                yield name, flat.grad
            else:
                for part in self.zero.averaged_gradients[index]:
                    yield name, part

    def _piece(self, parameter: Any, value: Tensor) -> Tensor:
        """This rank's piece of a whole value; the last one is filled up with zeros.

        DeepSpeed's own setter of whole values fails where the pieces need filling up.
        """
        size = parameter.ds_tensor.numel()
        begin = torch.distributed.get_rank() * size
        piece = torch.zeros(size, dtype=torch.float32, device=value.device)
        mine = value.flatten()[begin : begin + size]
        piece[: len(mine)] = mine
        return piece


def _gathered(deepspeed: Any, parameter: Any, key: str) -> Tensor:
    if key == "param":
        value = deepspeed.utils.safe_get_full_fp32_param(parameter)
    else:
        value = deepspeed.utils.safe_get_full_optimizer_state(parameter, key)
    assert isinstance(value, Tensor)
    return value


def _begin(adam: torch.optim.Optimizer, parameters: list[Any]) -> None:
    for parameter in parameters:
        if not adam.state[parameter]:
            adam.state[parameter] = {
                "step": torch.tensor(0.0),
                **{moment: torch.zeros_like(parameter) for moment in MOMENTS},
            }
