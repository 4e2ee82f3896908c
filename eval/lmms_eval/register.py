"""The entry point `lmms_eval.models`: tells lmms-eval which class `--model medalign` is."""

from typing import Any


def manifest() -> Any:
    """Return lmms-eval's description of the model; called by lmms-eval alone."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(
        model_id="medalign", simple_class_path="medalign.eval.lmms_eval.model.MedAlign"
    )
