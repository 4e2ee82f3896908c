"""medalign: a cached CLIP expert teaches a medical vision-language model where to look.

The names that users need, each imported when it is first used:

    TeacherCache        reads a cache: TeacherCache.open("cache")["p10/s5/a.jpg"]
    TeacherRow          one image's row: features [N, b], attention [N], valid [N]
    load_expert         a CLIP vision tower by name
    build               runs an expert over images and fills a cache
    read_manifest       a manifest's records
    Recipe              everything that decides a run: Recipe.from_yaml(path)
    train               trains a student against a cache
    load_base           a student's weights from a Hugging Face folder
    load_student        a base with a run's adapter and rotation
    make_spec           a decoder and its settings
    decode              answers of a batch by one of ten decoders
    score               scores of a predictions file, with intervals
    compare             two predictions files, sample by sample
    cosine_gram, spatial_alignment, attention_alignment
                        the losses (Eq. 3 to 5)

    from pathlib import Path
    import torch
    from medalign import load_base, load_student

    student = load_student(
        load_base(Path("llava-med-hf"), torch.bfloat16), Path("runs/slake/adapter")
    )

`help(medalign.train)` describes one of them; `medalign --help` the command line.
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

# No `__all__`: help(medalign) would print every method of every class.
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


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return what a shell completes."""
    return sorted({*globals(), *_HOMES})
