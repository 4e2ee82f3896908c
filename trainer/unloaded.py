"""A student's model without memory for its weights: names and shapes alone."""

from pathlib import Path
from typing import Any

import torch

from .students.families import FAMILIES
from .students.spec import read_config


def unloaded_model(path: Path) -> Any:
    """Build the model of a student's folder on the meta device; a 7B takes two seconds.

    Raises:
        StudentError: the folder is no student.
    """
    config = read_config(path)
    with torch.device("meta"):
        return FAMILIES[config.model_type].model_class(config)
