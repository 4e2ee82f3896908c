"""What an earlier run left in the output folder, and whether this run may replace it."""

import contextlib
import json
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from ... import __version__
from ...runtime.files import sha256_file
from ...runtime.progress import Progress
from .definition import SPLITS, DataSetError
from .prepare_report import REPORT

OUTPUT_NAMES: Final = (*(f"{split}.jsonl" for split in SPLITS), REPORT)
"""Every file that a run may write: its manifests and its report."""


def read_contents(folder: Path, progress: Progress, paths: Sequence[str]) -> dict[str, str]:
    """Return the SHA-256 of files in a folder, by path; files that cannot be read are left out."""
    digests = {}
    with progress.stage("reading images to tell equal ones", total=len(paths)):
        for path in paths:
            with contextlib.suppress(OSError):
                digests[path] = sha256_file(folder / path)
            progress.advance(1)
    return digests


@dataclass(frozen=True, slots=True, kw_only=True)
class Earlier:
    """An output folder before this run writes to it.

    Attributes:
        out: the folder.
        report: the report in it; None where there is none.
        overwrite: replace what is there, whatever it is.
    """

    out: Path
    report: Mapping[str, Any] | None
    overwrite: bool

    @classmethod
    def read(cls, out: Path, *, overwrite: bool) -> Self:
        """Read what an earlier run left.

        Raises:
            DataSetError: there is a report that is not ours, or a folder in the place of a file.
        """
        for name in OUTPUT_NAMES:
            if (out / name).is_dir():
                raise DataSetError(f"{out / name}: is a folder; move it away or name another --out")
        path = out / REPORT
        report = None
        if path.exists() and not overwrite:
            with contextlib.suppress(ValueError, RecursionError):
                report = json.loads(path.read_bytes())
            if not _is_ours(report):
                raise DataSetError(
                    f"{path}: is no report of `data prepare`; name another --out, or pass "
                    "--overwrite to replace it"
                )
        return cls(out=out, report=report, overwrite=overwrite)

    def check_source(self, made_from: Mapping[str, Any], images: Path | None) -> None:
        """Refuse to mix what was made from different sources, options or image folders.

        Args:
            made_from: what this run's outputs follow from.
            images: the image folder; None where this run writes it. A folder that is not there
                any more may have been moved, and does not differ.

        Raises:
            DataSetError: with everything that differs.
        """
        if self.report is None:
            return
        before, now = self.report["made_from"], {"medalign": __version__, **made_from}
        differing = list(_differences(before, now))
        folder = Path(self.report["images"])
        if images is not None and folder.is_dir() and not folder.samefile(images):
            differing.append(f"images: {folder} before, {images.absolute()} now")
        if differing:
            listed = "".join(f"\n  {difference}" for difference in differing)
            raise DataSetError(
                f"{self.out}: holds what an earlier run made from something else; name another "
                f"--out, or pass --overwrite to replace it{listed}"
            )

    def check_untouched(self) -> None:
        """Refuse early what `check_outputs` would refuse in the end.

        Raises:
            DataSetError: a manifest of the earlier run was changed.
        """
        for name, digest in self._outputs.items():
            if self._is_file(name) and sha256_file(self.out / name) != digest:
                raise self._in_the_way(name)

    def lost(self, ids: Container[str]) -> Iterator[str]:
        """Yield the ids of records of the earlier run that this run does not have.

        Args:
            ids: those of this run.
        """
        for name in self._outputs:
            if self._is_file(name):
                with (self.out / name).open("rb") as file:
                    yield from (id_ for line in file if (id_ := json.loads(line)["id"]) not in ids)

    def check_outputs(self, outputs: Mapping[str, str]) -> str:
        """Return "written", "unchanged" or "replaced" for files that are about to be put there.

        Args:
            outputs: SHA-256 of every file, the report's among them, by name.

        Raises:
            DataSetError: a manifest there is neither this run's nor the earlier one's.
        """
        names = [name for name in OUTPUT_NAMES if self._is_file(name)]
        present = {name: sha256_file(self.out / name) for name in names}
        if not present:
            return "written"
        if present == dict(outputs):
            return "unchanged"
        for name, digest in present.items():
            known = (outputs.get(name), self._outputs.get(name))
            if name != REPORT and digest not in known and not self.overwrite:
                raise self._in_the_way(name)
        return "replaced"

    def remove_all_but(self, outputs: Mapping[str, str]) -> None:
        """Remove manifests of the earlier run that this run has no records for."""
        for name in OUTPUT_NAMES:
            if name != REPORT and name not in outputs:
                (self.out / name).unlink(missing_ok=True)

    @property
    def _outputs(self) -> Mapping[str, str]:
        """Digests of the earlier run's manifests, by name."""
        return {} if self.report is None else self.report["outputs"]

    def _in_the_way(self, name: str) -> DataSetError:
        why = "was changed since it was prepared" if name in self._outputs else "is there already"
        return DataSetError(
            f"{self.out / name}: {why}; move it away, name another --out, or pass --overwrite to "
            "replace it"
        )

    def _is_file(self, name: str) -> bool:
        return (self.out / name).is_file()


def _is_ours(report: object) -> bool:
    if not isinstance(report, dict) or not isinstance(report.get("images"), str):
        return False
    made_from, outputs = report.get("made_from"), report.get("outputs")
    if not isinstance(made_from, dict) or not isinstance(outputs, dict):
        return False
    return isinstance(made_from.get("options"), dict) and outputs.keys() <= set(OUTPUT_NAMES)


def _differences(
    before: Mapping[str, Any], now: Mapping[str, Any], name: str = ""
) -> Iterator[str]:
    for key in {**before, **now}:
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new, f"{key} ")
        elif old != new:
            yield f"{name}{key}: {_short(old)} before, {_short(new)} now"


def _short(value: object) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."
