"""What an earlier run left in the output folder, and whether this run may touch it."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from ... import __version__
from .dataset import DataSetError
from .outputs import digest_of
from .report import REPORT
from .sample import SPLITS


@dataclass(frozen=True, slots=True, kw_only=True)
class Earlier:
    """Hold an output folder before this run writes to it.

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
            DataSetError: there is a report that is not ours.
        """
        path = out / REPORT
        report = None
        if path.exists() and not overwrite:
            try:
                report = json.loads(path.read_bytes())
                _ = dict(report["made_from"]["options"]), dict(report["outputs"])
            except (ValueError, KeyError, TypeError, RecursionError):
                raise DataSetError(
                    f"{path}: is no report of `data prepare`; name another --out, or pass "
                    "--overwrite to replace it"
                ) from None
        return cls(out=out, report=report, overwrite=overwrite)

    def check_source(self, made_from: Mapping[str, Any]) -> None:
        """Refuse to mix what was made from different sources or options.

        Raises:
            DataSetError: with everything that differs.
        """
        if self.report is None:
            return
        before, now = self.report["made_from"], {"medalign": __version__, **made_from}
        differing = list(_differences(before, now))
        if differing:
            listed = "".join(f"\n  {each}" for each in differing)
            raise DataSetError(
                f"{self.out}: holds what an earlier run made from something else; name another "
                f"--out, or pass --overwrite to replace it{listed}"
            )

    def check_outputs(self, outputs: Mapping[str, str]) -> str:
        """Return "written", "unchanged" or "replaced" for files that are about to be put there.

        Args:
            outputs: SHA-256 of every file, the report's among them, by name.

        Raises:
            DataSetError: a manifest there is neither this run's nor the earlier one's.
        """
        there = {name: digest_of(self.out / name) for name in _names() if self._is_file(name)}
        if not there:
            return "written"
        if there == dict(outputs):
            return "unchanged"
        ours = {} if self.report is None else self.report["outputs"]
        for name, digest in there.items():
            known = (outputs.get(name), ours.get(name))
            if name != REPORT and digest not in known and not self.overwrite:
                why = "was changed since it was prepared" if name in ours else "is there already"
                raise DataSetError(
                    f"{self.out / name}: {why}; move it away, name another --out, or pass "
                    "--overwrite to replace it"
                )
        return "replaced"

    def remove_all_but(self, outputs: Mapping[str, str]) -> None:
        """Remove manifests of the earlier run that this run has no records for."""
        for name in _names():
            if name != REPORT and name not in outputs:
                (self.out / name).unlink(missing_ok=True)

    def _is_file(self, name: str) -> bool:
        return (self.out / name).is_file()


def _names() -> tuple[str, ...]:
    return (*(f"{split}.jsonl" for split in SPLITS), REPORT)


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
