"""What crosses between the rooms: typed, versioned, read and written in one place each.

The ground floor. It imports nothing but the standard library, and travels inside every
archive together with the handler.
"""

from formats.certificate import Batching, Certificate, Check
from formats.document import FormatError
from formats.signature import DTYPES, Signature, TensorSpec
from formats.structure import answered, flatten

__all__ = [
    "DTYPES",
    "Batching",
    "Certificate",
    "Check",
    "FormatError",
    "Signature",
    "TensorSpec",
    "answered",
    "flatten",
]
