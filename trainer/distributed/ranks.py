"""The processes that train together, and the one door to DeepSpeed."""

import atexit
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch

T = TypeVar("T")


class RankError(RuntimeError):
    """Another rank failed, so this one stops too."""


def load_deepspeed() -> Any:
    """Import DeepSpeed, quiet and without compiling anything.

    Settings must stand before the import: DeepSpeed looks at them while it is loaded.
    """
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


@contextmanager
def sharded_loading(config: Mapping[str, Any], *, enabled: bool) -> Iterator[None]:
    """While entered, models are cut into parts among the ranks as their weights are read.

    Args:
        config: DeepSpeed's configuration, of ZeRO stage 3.
        enabled: False does nothing.
    """
    if not enabled:
        yield
        return
    load_deepspeed()
    import transformers.integrations.deepspeed as library

    bridge: Any = library
    _held = bridge.HfDeepSpeedConfig(dict(config))  # transformers keeps a weak reference only
    try:
        yield
    finally:
        bridge.unset_hf_deepspeed_config()


class Ranks:
    """The processes that train together; one, unless a launcher started more.

    Args:
        timeout_minutes: how long a rank waits for the others before it gives up.
    """

    def __init__(self, timeout_minutes: float = 30.0) -> None:
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
        load_deepspeed().init_distributed(
            dist_backend=None, verbose=False, timeout=timedelta(minutes=timeout_minutes)
        )
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

    def gather_items(self, items: Sequence[T]) -> list[T]:
        """Give the items of every rank to every rank, in rank order."""
        return [item for part in self.gather(items) for item in part]

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
