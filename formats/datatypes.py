"""Names of element types in the Open Inference Protocol.

https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol lists them; BF16
is Triton's.
"""

from typing import Final

DATATYPES: Final = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "bfloat16": "BF16",
    "float32": "FP32",
    "float64": "FP64",
}
"""The protocol's names by torch's."""
