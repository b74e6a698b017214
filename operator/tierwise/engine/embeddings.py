"""The OpenAI API's embeddings, simulated. No I/O.

A text's vector comes from its SHA-256: equal texts have equal vectors of length 1, others have unrelated ones. The
token rule is that of `openai`.
"""

import base64
import hashlib
import json
import math
import struct
from dataclasses import dataclass

from tierwise.engine.openai import RequestError

DIMENSIONS = 32
MAX_DIMENSIONS = 4096


@dataclass(frozen=True, slots=True)
class Embedding:
    """What a request asks for.

    Attributes:
        model: name as asked.
        inputs: texts, or token numbers.
        dimensions: numbers of each vector.
        packed: vectors as base64 of little-endian 32-bit floats, which OpenAI's own clients ask for.
    """

    model: str
    inputs: tuple[str | tuple[int, ...], ...]
    dimensions: int
    packed: bool

    @property
    def prompt_tokens(self) -> int:
        """Of all inputs; each has at least one."""
        return sum(max(1, len(one.split()) if isinstance(one, str) else len(one)) for one in self.inputs)

    def body(self) -> bytes:
        """The answer."""
        data = [
            {"object": "embedding", "index": number, "embedding": self._shown(vector(one, self.dimensions))}
            for number, one in enumerate(self.inputs)
        ]
        usage = {"prompt_tokens": self.prompt_tokens, "total_tokens": self.prompt_tokens}
        return json.dumps({"object": "list", "model": self.model, "data": data, "usage": usage}).encode()

    def _shown(self, numbers: tuple[float, ...]) -> str | tuple[float, ...]:
        return base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode() if self.packed else numbers


def parse(body: bytes) -> Embedding:
    """Read a request's body.

    Raises:
        RequestError: with the status and message that a client gets.
    """
    try:
        request = json.loads(body)
    except ValueError as error:
        raise RequestError(400, f"the body is no JSON: {error}") from error
    model = request.get("model") if isinstance(request, dict) else None
    if not isinstance(model, str) or not model:
        raise RequestError(400, "`model` must be the name of a model", param="model")
    coding = request.get("encoding_format", "float")
    if coding not in {"float", "base64"}:
        raise RequestError(400, "`encoding_format` must be float or base64", param="encoding_format")
    dimensions = request.get("dimensions") or DIMENSIONS
    if isinstance(dimensions, bool) or not isinstance(dimensions, int) or not 1 <= dimensions <= MAX_DIMENSIONS:
        raise RequestError(
            400, f"`dimensions` must be a whole number between 1 and {MAX_DIMENSIONS}", param="dimensions"
        )
    return Embedding(model, _inputs(request.get("input")), dimensions, coding == "base64")


def _inputs(given: object) -> tuple[str | tuple[int, ...], ...]:
    if isinstance(given, str) or _are_tokens(given):
        given = [given]
    if isinstance(given, list) and given and all(isinstance(one, str) or _are_tokens(one) for one in given):
        return tuple(one if isinstance(one, str) else tuple(one) for one in given)
    raise RequestError(400, "`input` must be a text, token numbers, or a list of either", param="input")


def _are_tokens(given: object) -> bool:
    return isinstance(given, list) and bool(given) and all(type(token) is int for token in given)


def vector(text: str | tuple[int, ...], dimensions: int) -> tuple[float, ...]:
    """A vector of length 1, the same for the same text, exact in 32 bits."""
    seed = repr(text).encode()
    blocks = range(math.ceil(dimensions / 8))
    raw = b"".join(hashlib.sha256(seed + block.to_bytes(4, "little")).digest() for block in blocks)
    numbers = [value / 2**31 - 1 for value in struct.unpack(f"<{len(raw) // 4}I", raw)][:dimensions]
    length = math.sqrt(sum(value * value for value in numbers)) or 1.0
    return struct.unpack(f"<{dimensions}f", struct.pack(f"<{dimensions}f", *(value / length for value in numbers)))
