"""DeepSpeed's one door: start ranks, build the engine, gather and restore its state."""

import atexit
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar, cast

import torch
from torch import Tensor, nn

from .recipe import OptimSection, Recipe

MOMENTS: Final = ("exp_avg", "exp_avg_sq")


def _deepspeed() -> Any:
    # Settings must stand before the import: DeepSpeed looks at them while it is loaded.
    if not torch.accelerator.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    logger = deepspeed.utils.logger
    for handler in list(logger.handlers):
        if type(handler) is logging.StreamHandler:
            logger.removeHandler(handler)  # writes to stdout, which belongs to the command
    logger.propagate = True
    logger.setLevel(logging.ERROR)
    if not torch.accelerator.is_available():
        # The first use of this op compiles C++ for minutes, or fails where there is no compiler.
        # Reading the attribute instead would compile probes of every op, newer releases do so.
        vars(deepspeed.ops).setdefault("__compatible_ops__", {})["deepspeed_shm_comm"] = False
    return deepspeed


T = TypeVar("T")


class RankError(RuntimeError):
    """Another rank failed, so this one stops too."""


class Ranks:
    """The processes that train together; one, unless a launcher started more."""

    def __init__(self) -> None:
        for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1")):
            os.environ.setdefault(name, value)
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        if os.environ["WORLD_SIZE"] == "1":
            os.environ.setdefault("MASTER_PORT", "0")
        self.rank = int(os.environ["RANK"])
        self.world = int(os.environ["WORLD_SIZE"])
        self.device = torch.device("cpu")
        if torch.cuda.is_available():
            self.device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(self.device)
        _deepspeed().init_distributed(dist_backend=None, verbose=False)
        atexit.register(self.stop)

    def sum(self, values: list[float]) -> list[float]:
        """Add each number over all ranks, in float64."""
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        if self.world > 1:
            torch.distributed.all_reduce(total)
        return [float(value) for value in total.tolist()]

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.world > 1:
            torch.distributed.barrier()

    def gather(self, value: Any) -> list[Any]:
        """Give every rank's value to every rank, in rank order."""
        values: list[Any] = [None] * self.world
        if self.world == 1:
            return [value]
        torch.distributed.all_gather_object(values, value)
        return values

    def first(self, job: Callable[[], T]) -> T:
        """Let rank 0 do a job and give its result to all; a failure there is a failure of all.

        Raises:
            Exception: on rank 0, what the job raised; elsewhere a `RankError` with its message.
        """
        result, failure = None, None
        if self.rank == 0:
            try:
                result = job()
            except Exception as error:
                failure = error
        outcomes = self.gather((None if failure is None else str(failure), result))
        if failure is not None:
            raise failure
        message, result = outcomes[0]
        if message is not None:
            raise RankError(f"rank 0 stopped: {message}")
        return cast(T, result)

    def stop(self) -> None:
        """Leave the process group; called when the process ends, or NCCL would complain."""
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


class Engine:
    """A DeepSpeed engine around an objective, with state that knows neither ranks nor stages.

    Args:
        objective: module whose `requires_grad` parameters are trained.
        recipe: of the run.
        ranks: processes taking part.
        bf16: train in bfloat16 with float32 masters.
    """

    def __init__(self, objective: nn.Module, recipe: Recipe, ranks: Ranks, *, bf16: bool) -> None:
        stage = recipe.deepspeed.stage
        self.ranks = ranks
        self.stage = stage
        self.deepspeed = _deepspeed()
        groups = _groups(objective, recipe.optim)
        optimizer = torch.optim.AdamW(
            groups, betas=recipe.optim.betas, weight_decay=recipe.optim.weight_decay
        )
        self._base_rates = [float(group["lr"]) for group in groups]
        self.engine, self.optimizer, _, _ = self.deepspeed.initialize(
            model=objective, optimizer=optimizer, config=_config(recipe, bf16)
        )
        self._named = [(n, p) for n, p in objective.named_parameters() if p.requires_grad]

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

    def gradient_norm(self) -> float | None:
        """L2 norm of the whole gradient before clipping, of stage 0; call before `step`."""
        if self.stage:
            return None
        grads = [p.grad for _, p in self._named if p.grad is not None]
        return float(torch.nn.utils.get_total_norm(grads))

    def last_gradient_norm(self) -> float:
        """L2 norm that the last `step` saw, of stages 1 and 2."""
        return float(self.engine.get_global_grad_norm() or 0.0)

    def parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Trained parameters by name, as the model computes with them."""
        yield from self._named

    def state(self) -> dict[str, Tensor]:
        """Float32 parameters and Adam moments by name, whole, on the CPU of rank 0.

        All ranks must call; the others get an empty dict.
        """
        self._begin_adam()
        state = {}
        for name, parameter in self._named:
            for key in ("param", *MOMENTS):
                value = self._get(parameter, key)
                if self.ranks.rank == 0:
                    state[f"{key}.{name}"] = value.detach().to("cpu", torch.float32, copy=True)
        return state

    def adam_step(self) -> int:
        """Updates that Adam has counted."""
        steps = [int(entry["step"]) for entry in self._adam().state.values() if "step" in entry]
        return steps[0] if steps else 0

    def load(self, state: dict[str, Tensor], adam_step: int) -> None:
        """Restore what `state` gave. All ranks must call.

        Raises:
            KeyError: a trained parameter has no entry.
        """
        self._begin_adam()
        for name, parameter in self._named:
            for key in ("param", *MOMENTS):
                self._set(parameter, key, state[f"{key}.{name}"].to(self.ranks.device))
        for entry in self._adam().state.values():
            entry["step"] = torch.tensor(float(adam_step))

    def _adam(self) -> torch.optim.Optimizer:
        inner: torch.optim.Optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        return inner

    def _begin_adam(self) -> None:
        """Make Adam's moments, which exist only after a first step."""
        adam = self._adam()
        for group in adam.param_groups:
            for parameter in group["params"]:
                if not adam.state[parameter]:
                    adam.state[parameter] = {
                        "step": torch.tensor(0.0),
                        "exp_avg": torch.zeros_like(parameter),
                        "exp_avg_sq": torch.zeros_like(parameter),
                    }
        if self.stage:
            # DeepSpeed links parameters to their moments once, after the first group's update,
            # when the other groups have none yet; so link again.
            link = self.deepspeed.utils.lazy_init_hp_params_optimizer_state
            zero = self.optimizer
            for low, flat in zip(
                zero.bit16_groups, zero.single_partition_of_fp32_groups, strict=True
            ):
                link(low, flat, adam.state)

    def _get(self, parameter: Any, key: str) -> Tensor:
        if self.stage == 0:
            value = parameter if key == "param" else self._adam().state[parameter][key]
        elif key == "param":
            value = self.deepspeed.utils.safe_get_full_fp32_param(parameter)
        else:
            value = self.deepspeed.utils.safe_get_full_optimizer_state(parameter, key)
        assert isinstance(value, Tensor)
        return value

    def _set(self, parameter: Any, key: str, value: Tensor) -> None:
        if key == "param":
            with torch.no_grad():
                parameter.copy_(value)
        if self.stage == 0:
            if key != "param":
                self._adam().state[parameter][key].copy_(value)
        elif key == "param":
            self.deepspeed.utils.safe_set_full_fp32_param(parameter, value)
        else:
            self.deepspeed.utils.safe_set_full_optimizer_state(parameter, value, key)


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


def _config(recipe: Recipe, bf16: bool) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": recipe.data.batch_size,
        "gradient_accumulation_steps": recipe.data.accumulation,
        "gradient_clipping": recipe.optim.clip,
        "bf16": {"enabled": bf16},
        "zero_optimization": {"stage": recipe.deepspeed.stage},
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }
