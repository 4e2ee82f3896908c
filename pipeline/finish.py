"""The exact commands that finish a store."""

import shlex
from pathlib import Path

from ..teacher_cache.audit import CacheStatus, status
from ..teacher_cache.origin import load_origin
from ..teacher_cache.storage import Storage
from .retyped import quoted

UNKNOWN = ("MANIFEST", "--images", "DIR", "--expert", "NAME")
"""What stands in a command for what a store does not know of itself."""


def finishing(store: Path | str | Storage, found: CacheStatus | None = None) -> list[str]:
    """Return the commands that finish `store`, in order; none when nothing is left to do.

    Raises:
        TeacherCacheError: it is no store.
    """
    found = found or status(store)
    commands = []
    if found.pending or found.damaged:
        origin = load_origin(store)
        begun = " ".join(("medalign cache build", *UNKNOWN, "--out", shlex.quote(str(store))))
        commands.append(quoted(origin.command) if origin else begun)
    if commands or found.state != "sealed":
        commands.append(f"medalign cache seal {shlex.quote(str(store))}")
    return commands
