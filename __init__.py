"""medalign: a cached CLIP expert teaches a medical vision-language model where to look.

from medalign import TeacherCache, load_base, load_student, train, decode, score

row = TeacherCache.open("cache")["p10/s5/a.jpg"]     # features [N, b], attention [N], valid [N]
student = load_student(load_base("llava-med-hf", torch.bfloat16), "runs/slake/adapter")
"""

# Nothing of the package is imported here: test runners load this file a second time, under the
# name of the checkout folder, and the package would exist twice.
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .eval.compare import compare as compare
    from .eval.decoders import decode as decode
    from .eval.decoders import make_spec as make_spec
    from .eval.score import score as score
    from .pipeline.build import build as build
    from .pipeline.experts import load_expert as load_expert
    from .pipeline.manifest import read_manifest as read_manifest
    from .teacher_cache.reader import TeacherCache as TeacherCache
    from .teacher_cache.reader import TeacherRow as TeacherRow
    from .trainer.losses import attention_alignment as attention_alignment
    from .trainer.losses import cosine_gram as cosine_gram
    from .trainer.losses import spatial_alignment as spatial_alignment
    from .trainer.recipe.recipe import Recipe as Recipe
    from .trainer.student import load_base as load_base
    from .trainer.student import load_student as load_student
    from .trainer.train import train as train

__version__ = "0.1.0"

_HOMES = {
    "Recipe": "trainer.recipe.recipe",
    "TeacherCache": "teacher_cache.reader",
    "TeacherRow": "teacher_cache.reader",
    "attention_alignment": "trainer.losses",
    "build": "pipeline.build",
    "compare": "eval.compare",
    "cosine_gram": "trainer.losses",
    "decode": "eval.decoders",
    "load_base": "trainer.student",
    "load_expert": "pipeline.experts",
    "load_student": "trainer.student",
    "make_spec": "eval.decoders",
    "read_manifest": "pipeline.manifest",
    "score": "eval.score",
    "spatial_alignment": "trainer.losses",
    "train": "trainer.train",
}
__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
