"""The exact commands that finish a store."""

import shlex

from .origin import load_origin
from .storage import LocalStorage, Storage

UNKNOWN = ("MANIFEST", "--images", "DIR", "--expert", "NAME")
"""What stands in a command for what a store does not know of itself."""
_OUT = "--out"


def finishing(store: Storage, *, written: bool, sealed: bool) -> list[str]:
    """Return the commands that finish `store`, in order; none when nothing is left to do.

    Args:
        store: the cache, where it lies now.
        written: every shard is there.
        sealed: a seal covers all of them.
    """
    commands = [] if written else [build_command(store)]
    return commands if written and sealed else [*commands, seal_command(store)]


def build_command(store: Storage) -> str:
    """Return the command that builds what `store` lacks, as it was typed last if that is known."""
    origin = load_origin(store)
    if origin is None:
        return shlex.join(("medalign", "cache", "build", *UNKNOWN, _OUT, str(store)))
    return shlex.join(_into(_from_anywhere(store), origin.command))


def seal_command(store: Storage) -> str:
    """Return the command that seals `store`."""
    return f"medalign cache seal {shlex.quote(str(store))}"


def mend_command(store: Storage) -> str:
    """Return the command that makes damaged shards of `store` pending, and unseals it."""
    return f"medalign cache verify {shlex.quote(str(store))} --mend"


def _into(out: str, command: tuple[str, ...]) -> list[str]:
    """Return a build's command with `out` for its store: that may have been moved or copied."""
    words = list(command)
    for place, word in enumerate(command):
        if word == _OUT:
            words[place + 1 : place + 2] = [out]
        elif word.startswith(f"{_OUT}="):
            words[place] = f"{_OUT}={out}"
    return words


def _from_anywhere(store: Storage) -> str:
    """Return the place of a store for a command all of whose paths are absolute."""
    return str(store.folder.resolve()) if isinstance(store, LocalStorage) else store.url
