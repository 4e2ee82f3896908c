"""The folder of one run: its identity, what it measured, the checkpoints to resume from."""

import errno
import fcntl
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TextIO

from ...runtime.files import (
    append_lines,
    drop_folder,
    make_folder,
    put_folder,
    put_link,
    read_lines,
    recover_folders,
    whole_folder,
    write_durably,
)
from ..recipe.recipe import Recipe, RecipeError
from .best_checkpoint import Best, Contest
from .checkpoint_files import is_complete, seal_folder, step_of

_LINES: Final = ("metrics.jsonl", "skipped.jsonl", "validation.jsonl")

# A run may be resumed with other values of these: every number stays, or files move.
FREE_KEYS: Final = frozenset(
    {
        "data.accumulation",  # what counts is the product with batch_size and ranks
        "data.batch_size",
        "data.cache_folder",
        "data.cache_gb",
        "data.images",
        "data.manifest",  # its records are in the identity
        "data.per_step",  # what it comes to is in the identity
        "data.prefetch",
        "data.start_method",
        "data.workers",
        "deepspeed.config",
        "deepspeed.offload",
        "deepspeed.stage",
        "log.tensorboard",
        "log.wandb",
        "log.wandb_mode",
        "run.keep",
        "run.save_every",
        "run.timeout_minutes",
        "student.dtype",  # the precision that it comes to is in the identity
        "student.path",  # the student's digest is in the identity
        "validation.every",
        "validation.images",
        "validation.keep_best",
        "validation.manifest",  # values of another held-out set are never compared
        "validation.samples",
    }
)


class RunFolder:
    """Files of a run below one folder; see `docs/run-folder.md` for the layout."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.moved: Path | None = None
        self._lock: TextIO | None = None

    @property
    def checkpoints(self) -> Path:
        """Folder of complete checkpoints, `step-N` each, and of what is being written."""
        return self.path / "checkpoints"

    @property
    def adapter(self) -> Path:
        """The finished run's adapter, of its last step."""
        return self.path / "adapter"

    @property
    def best_adapter(self) -> Path:
        """The adapter of a finished run's best checkpoint, where the recipe keeps one."""
        return self.path / "adapter-best"

    def begin(self, recipe: Recipe, identity: dict[str, Any], *, resume: bool) -> Path | None:
        """Make the folder, or come back to it.

        Args:
            recipe: of this run.
            identity: what else must be equal for a resumed run to be the same run.
            resume: start from the newest checkpoint; otherwise an earlier run's folder is renamed
                out of the way.

        Returns:
            The newest complete checkpoint, or None to start at step 0.

        Raises:
            RecipeError: the folder holds another run, or something else.
        """
        if self.path.exists() and not self.path.is_dir():
            raise RecipeError(f"{self.path} exists and is no folder; choose another --out")
        if self.path.is_dir() and any(self.path.iterdir()):
            if not (self.path / "recipe.yaml").is_file():
                raise RecipeError(
                    f"{self.path} holds something else than a run; choose another --out"
                )
            if resume:
                check_same_run(self.path, recipe, identity)
            else:
                self.moved = self._move_away()
        make_folder(self.checkpoints)
        self._take()
        recover_folders(self.checkpoints, self._writing, is_complete)
        write_durably(self.path / "identity.json", _json(identity))
        write_durably(self.path / "recipe.yaml", recipe.to_yaml().encode())
        return self.newest()

    def newest(self) -> Path | None:
        """Newest complete checkpoint; what a killed run left half written does not count."""
        return next(reversed(self._complete()), None)

    def append_metrics(self, values: Mapping[str, Any]) -> None:
        """Add one line to `metrics.jsonl`."""
        append_lines(self.path / "metrics.jsonl", [values])

    def append_validation(self, values: Mapping[str, Any]) -> None:
        """Add one line to `validation.jsonl`."""
        append_lines(self.path / "validation.jsonl", [values])

    def rewind(self, step: int) -> None:
        """Drop lines of steps after `step`, which a resumed run will measure again."""
        for name in _LINES:
            path = self.path / name
            if path.is_file():
                lines = [line for line in read_lines(path) if line["step"] <= step]
                write_durably(path, "".join(json.dumps(line) + "\n" for line in lines).encode())

    def metrics(self) -> list[dict[str, Any]]:
        """Every whole line of `metrics.jsonl`, in order of steps."""
        return read_lines(self.path / "metrics.jsonl")

    def validation(self) -> list[dict[str, Any]]:
        """Every whole line of `validation.jsonl`, in order of steps."""
        return read_lines(self.path / "validation.jsonl")

    def skipped(self) -> list[dict[str, Any]]:
        """Every whole line of `skipped.jsonl`: step, id, reason."""
        return read_lines(self.path / "skipped.jsonl")

    def append_skipped(self, step: int, skipped: Sequence[tuple[str, str]]) -> None:
        """Note conversations that carried no weight, and why, in `skipped.jsonl`."""
        lines = [{"step": step, "id": record, "reason": reason} for record, reason in skipped]
        append_lines(self.path / "skipped.jsonl", lines)

    def partial_checkpoint(self) -> Path:
        """An empty folder to write a checkpoint into."""
        shutil.rmtree(self._writing, ignore_errors=True)
        make_folder(self._writing)
        return self._writing

    def publish(self, partial: Path, step: int, keep: int, contest: Contest | None = None) -> Path:
        """Turn a fully written folder into checkpoint `step-N` and drop old ones.

        `last` points at it, and `best` at the winner of the contest, which is never dropped. A
        kill at any time leaves every checkpoint that counts whole.

        Args:
            partial: from `partial_checkpoint`, with everything in it.
            step: N.
            keep: complete checkpoints to keep, the newest ones.
            contest: which checkpoint is best; None knows no best one.
        """
        target = self.checkpoints / f"step-{step}"
        seal_folder(partial)
        put_folder(partial, target)
        put_link(self.checkpoints / "last", target.name)
        complete = self._complete()
        best = self.best(contest)
        self._point_at_best(best)
        for old in complete[:-keep]:
            if best is None or old != best.checkpoint:
                drop_folder(old)
        return target

    def best(self, contest: Contest | None) -> Best | None:
        """The complete checkpoint that is lowest so far; None when none was measured."""
        return None if contest is None else contest.winner(self._complete())

    def is_best(self, contest: Contest, value: float | None) -> bool:
        """Whether a value is lower than that of every complete checkpoint."""
        return contest.is_won_by(value, self._complete())

    def finish(self, last: Path, best: Best | None = None) -> None:
        """Copy the adapters of the last and the best checkpoint to where users look for them.

        Without a best one, that of an earlier contest is taken away.
        """
        self._copy_adapter(last, self.adapter)
        self._point_at_best(best)
        if best is not None:
            self._copy_adapter(best.checkpoint, self.best_adapter)
        elif self.best_adapter.is_dir():
            shutil.rmtree(self.best_adapter)

    @property
    def _writing(self) -> Path:
        return self.checkpoints / ".writing"

    def _complete(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        checkpoints = self.checkpoints.glob("step-*")
        return sorted(filter(is_complete, checkpoints), key=step_of)

    def _point_at_best(self, best: Best | None) -> None:
        link = self.checkpoints / "best"
        if best is None:
            link.unlink(missing_ok=True)
        else:
            put_link(link, best.checkpoint.name)

    def _copy_adapter(self, checkpoint: Path, target: Path) -> None:
        with whole_folder(target) as partial:
            shutil.copytree(checkpoint / "adapter", partial, dirs_exist_ok=True)

    def release(self) -> None:
        """Let another process train here."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _take(self) -> None:
        """Keep a second process out; the lock goes with this process, however it ends."""
        self.release()
        self._lock = (self.path / ".lock").open("a+")
        try:
            # Not flock: forked workers would inherit it, and hold it after a kill of the parent.
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            self.release()
            raise RecipeError(
                f"another process trains in {self.path}; wait for it, or choose another --out"
            ) from error
        except OSError as error:
            if error.errno not in (errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK):
                raise  # a file system without locks is used without one

    def _move_away(self) -> Path:
        number = 1
        while (old := self.path.with_name(f"{self.path.name}.old-{number}")).exists():
            number += 1
        self.path.rename(old)
        return old


def check_same_run(folder: Path, recipe: Recipe, identity: Mapping[str, Any]) -> None:
    """Refuse to resume a run of other numbers.

    Args:
        folder: of the run that is there.
        recipe: of this run.
        identity: what else must be equal.

    Raises:
        RecipeError: names what differs.
    """
    old = Recipe.from_yaml(folder / "recipe.yaml").flat()
    new = recipe.flat()
    differ = sorted(k for k in new if k not in FREE_KEYS and old.get(k) != new[k])
    if differ:
        changes = ", ".join(f"{k} was {old.get(k)!r}, is {new[k]!r}" for k in differ)
        raise RecipeError(
            f"{folder} holds a run of another recipe ({changes}); choose another --out, "
            "or --no-resume to start over"
        )
    try:
        before = json.loads((folder / "identity.json").read_text())
    except (OSError, ValueError):
        before = {}
    for key, value in identity.items():
        if before.get(key) != value:
            raise RecipeError(
                f"{folder} was trained with another {key} ({before.get(key)!r}, now "
                f"{value!r}); choose another --out, or --no-resume to start over"
            )


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()
