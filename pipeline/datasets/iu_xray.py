"""How the IU-Xray files name patients and studies: CXR<patient>_IM-<study>..."""

import re

_STUDY = re.compile(r"(CXR\d+)_IM-[\d-]+")


def study_of(path: str) -> str | None:
    """Return the study that an image path or an id names, as "CXR1_IM-0001-3001"; else None.

    R2Gen has a folder a study, Open-i a file an image, whose last number tells the image.
    """
    folder, slash, name = path.rpartition("/")
    found = _STUDY.fullmatch(folder.rpartition("/")[2] if slash else name.removesuffix(".png"))
    return found[0] if found else None


def patient_of(study: str) -> str:
    """Return the patient's name: what comes before "_IM-"."""
    return study.partition("_")[0]
