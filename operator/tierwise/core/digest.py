"""Short digests that no reader of YAML takes for a number.

Sixteen hexadecimal digits alone are one now and then (`1234567890123e12`, or sixteen decimals):
kubectl then refuses an annotation as a number, and others change what it says.
"""

import hashlib

PREFIX = "h"
"""No hexadecimal digit, no sign, no start of a number or of a word like `yes`."""


def digest(content: bytes) -> str:
    """`h` and the first 16 hexadecimal digits of the SHA-256: fits annotations, label values and file names."""
    return PREFIX + hashlib.sha256(content).hexdigest()[:16]


def same(said: object, made: str) -> bool:
    """Whether a kept digest is the one that was made now; earlier versions kept them without the letter."""
    return said in {made, made.removeprefix(PREFIX)}
