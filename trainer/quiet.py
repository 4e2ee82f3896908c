"""Keep libraries from talking into a command's output, and away from the network."""

import logging
import os
import warnings
from typing import Any

import torch


def quiet_libraries() -> None:
    """Set up this process for a command that loads models.

    Called by commands, never on import: transformers imports DeepSpeed by itself, and both look
    at the environment while they are loaded.
    """
    if not torch.accelerator.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # otherwise a warning goes to stdout
    # Tokenizers are used before worker processes are forked.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # On a CPU without AVX512 kernels it says at import that it goes on without them.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.simplefilter("ignore", FutureWarning)
    warnings.simplefilter("ignore", DeprecationWarning)
    from transformers.utils import logging as transformers_logging

    talk: Any = transformers_logging
    talk.set_verbosity_error()
    talk.disable_progress_bar()
