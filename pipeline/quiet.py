"""Decoders without warnings and without mercy: the process-wide switches, safe in threads."""

import threading
import warnings
from types import TracebackType

from PIL import ImageFile


class _Strict:
    """Silence the decoders and make Pillow strict while at least one thread decodes.

    What is wrong with a file is an error or does not matter; a warning that reaches the user, or
    becomes an exception, would depend on their filters. `catch_warnings` alone would restore the
    filters of another thread, hence the count: the first one in changes, the last one out restores.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._warnings = warnings.catch_warnings()
        self._truncated = False

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._warnings = warnings.catch_warnings()
                self._warnings.__enter__()
                warnings.filterwarnings("ignore", module=r"(PIL|pydicom|pylibjpeg|\w+jpeg)(\.|$)")
                self._truncated = ImageFile.LOAD_TRUNCATED_IMAGES
                ImageFile.LOAD_TRUNCATED_IMAGES = False  # else a cut file is filled with grey

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._warnings.__exit__(kind, error, trace)
                ImageFile.LOAD_TRUNCATED_IMAGES = self._truncated


strict_decoding = _Strict()
"""The one context under which this process decodes."""
