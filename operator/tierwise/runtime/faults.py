"""What a defect of ours raises. Named, so that cancellation, exhausted memory and exits pass through."""

from tierwise.errors import TierwiseError

FAULTS = (
    TierwiseError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
