"""Ten decoders for one student: `decode(model, inputs, spec, seed)`."""

from .dispatch import decode as decode
from .presets import make_spec as make_spec
from .specs import SPECS as SPECS
from .specs import DecodingError as DecodingError
from .specs import Spec as Spec
