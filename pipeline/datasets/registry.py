"""The data sets that medalign can prepare, by name."""

from .dataset import DataSet, DataSetError
from .pathvqa import PATHVQA
from .slake import SLAKE
from .vqa_rad import VQA_RAD

DATA_SETS = {data_set.name: data_set for data_set in (SLAKE, VQA_RAD, PATHVQA)}


def find_data_set(name: str) -> DataSet:
    """Return a data set.

    Raises:
        DataSetError: there is none of that name.
    """
    try:
        return DATA_SETS[name]
    except KeyError:
        known = ", ".join(DATA_SETS)
        raise DataSetError(f"no data set {name!r} is known; known are {known}") from None
