"""How a store was last built, and the commands that finish it: a hint, no part of what it holds."""

import json
import shlex
import unicodedata
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from .storage.local import LocalStorage, Storage, open_storage, read_json
from .storage.untrusted import TeacherCacheError, check_mapping, check_text, check_type

UNKNOWN = ("MANIFEST", "--images", "DIR", "--expert", "NAME")
"""What stands in a command for what a store does not know of itself."""
_OUT = "--out"
_UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")  # what a terminal acts on, hides or cannot show
_FILE = "_commit/origin.json"
_FILE_BYTES = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """The last build of a store; all paths absolute.

    Attributes:
        command: words of the command line that builds what is left, whatever part was built.
        manifest: file with the records.
        images: folder that its image paths are relative to.
        expert: as given to `--expert`.
        weights: checkpoint file or folder, None where the expert needs none.
    """

    command: tuple[str, ...]
    manifest: str
    images: str
    expert: str
    weights: str | None = None

    def __post_init__(self) -> None:
        # It may come from a stranger's store, and ends up on a terminal to be typed again.
        if self.command[:3] != ("medalign", "cache", "build"):
            raise TeacherCacheError(f"command is not `medalign cache build`: {self.command!r:.80}")
        weights = () if self.weights is None else (self.weights,)
        for text in (*self.command, self.manifest, self.images, self.expert, *weights):
            if any(unicodedata.category(char) in _UNSEEN for char in check_text(text, "origin")):
                raise TeacherCacheError(f"origin takes no control characters, got {text!r:.80}")

    @classmethod
    def from_json(cls, value: object) -> Self:
        """Read the JSON form; fields of later versions are left alone.

        Raises:
            TeacherCacheError: a field is missing, or a value cannot be.
        """
        fields = {**dict.fromkeys(cls.__slots__), **check_mapping(value, "origin")}
        check_type(fields["command"], "command", list)
        known = {name: fields[name] for name in cls.__slots__}
        return cls(**{**known, "command": tuple(known["command"])})


def save_origin(store: Path | str | Storage, origin: Origin) -> None:
    """Remember how `store` is being built."""
    open_storage(store).write(_FILE, json.dumps(asdict(origin), indent=2).encode())


def load_origin(store: Path | str | Storage) -> Origin | None:
    """Return how `store` was last built, None where that is not known: never an error."""
    try:
        return Origin.from_json(read_json(open_storage(store), _FILE, _FILE_BYTES))
    except (TeacherCacheError, OSError):
        return None


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
    for position, word in enumerate(command):
        if word == _OUT:
            words[position + 1 : position + 2] = [out]
        elif word.startswith(f"{_OUT}="):
            words[position] = f"{_OUT}={out}"
    return words


def _from_anywhere(store: Storage) -> str:
    """Return the place of a store for a command all of whose paths are absolute."""
    return str(store.folder.resolve()) if isinstance(store, LocalStorage) else store.url
