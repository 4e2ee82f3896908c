"""Write down the reports that RadGraph has to annotate, in an environment of its own."""

import json
from collections.abc import Sequence
from pathlib import Path

from .metrics.report import clinical_text
from .report_scores import PROTOCOLS
from .result_file import write_result
from .score import read_pairs


def write_texts(predictions: Sequence[Path], manifest: Path, out: Path) -> int:
    """Write every distinct predicted and reference report that is not blank, as a JSON array.

    Args:
        predictions: files that answer the manifest.
        manifest: holds the references.
        out: file to write.

    Returns:
        How many texts were written.

    Raises:
        AnswersError: as `score.score`; a record without an answer is left out.
        ManifestError: the manifest is broken.
    """
    texts: set[str] = set()
    for path in predictions:
        _, pairs = read_pairs(path, manifest, "report", allow_missing=True)
        texts |= {pair.reference for pair in pairs}
        texts |= {clinical_text(pair.prediction, p) for pair in pairs for p in PROTOCOLS}
    found = sorted(text for text in texts if text.strip())
    write_result(out, json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    return len(found)
