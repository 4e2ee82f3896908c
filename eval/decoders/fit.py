"""Whether a decoder fits a student, asked before any weight is read."""

from ...trainer.students.spec import StudentSpec, read_config
from .damro import check_tower
from .dola import premature_layers
from .pai import boosted_layers
from .room import check_length
from .settings import DecodingError, Spec
from .specs import Damro, Dola, Pai, check_family


def check_fit(spec: Spec, student: StudentSpec) -> None:
    """Refuse a decoder that this student cannot use.

    Raises:
        DecodingError: says what does not fit.
    """
    check_family(spec, student.family.model_type)
    check_length(spec, student.positions)
    if isinstance(spec, Dola):
        premature_layers(spec.layers, student.layers)
    if isinstance(spec, Pai):
        boosted_layers(spec, student.layers)
    if isinstance(spec, Damro) and spec.variant == "published":
        check_tower(spec, read_config(student.path))
        if spec.top_tokens > student.grid.size:
            raise DecodingError(
                f"damro: top_tokens is {spec.top_tokens}, an image of this student has "
                f"{student.grid.size}"
            )
