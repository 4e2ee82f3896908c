"""Several reads at once, where each waits for a server."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class InFlight:
    """Calls a function for many items, up to `most` at a time; picklable, and safe across fork.

    Attributes:
        most: threads at most; with 1 the calling thread does everything.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._pools: dict[int, ThreadPoolExecutor] = {}

    def __getstate__(self) -> dict[str, object]:
        return {"most": self.most, "_pools": {}}

    def each(self, function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """Return what `function` makes of every item, in order; the first error is raised."""
        if self.most == 1:
            return [function(item) for item in items]
        pid = os.getpid()
        if (pool := self._pools.get(pid)) is None:  # of a parent's pool a child has no threads
            pool = self._pools[pid] = ThreadPoolExecutor(self.most, "medalign-read")
        return list(pool.map(function, items))
