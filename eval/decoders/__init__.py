"""Ten decoders for one student: `decode(model, inputs, spec, seed)`."""

from .dispatch import decode as decode
from .presets import make_spec as make_spec
from .settings import SPECS as SPECS
from .settings import DecodingError as DecodingError
from .settings import Spec as Spec
