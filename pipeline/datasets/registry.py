"""The data sets that medalign can prepare, by name."""

from .definition import DataSet, DataSetError
from .iu_xray import IU_XRAY_REPORT, IU_XRAY_VQA
from .mimic_cxr import MIMIC_CXR_REPORT
from .omnimedvqa import OMNIMEDVQA
from .pathvqa import PATHVQA
from .slake import SLAKE
from .vqa_rad import VQA_RAD

DATA_SETS = {
    data_set.name: data_set
    for data_set in (
        SLAKE,
        VQA_RAD,
        PATHVQA,
        OMNIMEDVQA,
        IU_XRAY_VQA,
        IU_XRAY_REPORT,
        MIMIC_CXR_REPORT,
    )
}


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
