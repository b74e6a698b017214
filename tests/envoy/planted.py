"""Keys that can be recognised, and where they turn up. A key that comes later is one more line in `plant` of a test."""

import base64
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from urllib.parse import quote


@dataclass(frozen=True)
class Planted:
    """A key.

    Attributes:
        name: for people. value: as it is. belongs: places where it may be found, and has to be.
    """

    name: str
    value: str = field(repr=False)
    belongs: frozenset[str] = frozenset()

    def forms(self) -> set[str]:
        """As it is, and as it would be after the usual transformations."""
        raw = self.value.encode()
        return {
            self.value,
            quote(self.value, safe=""),
            raw.hex(),
            # Wherever in a longer text it stands, two of three base64 characters at each end depend on neighbours.
            *(base64.b64encode(b"x" * shift + raw)[4:-4].decode() for shift in range(3)),
        }


def found(keys: Iterable[Planted], places: Mapping[str, str | bytes]) -> dict[str, frozenset[str]]:
    """Key's name -> names of the places in which it stands."""
    texts = {
        name: text.decode("utf-8", "replace") if isinstance(text, bytes) else text for name, text in places.items()
    }
    return {
        key.name: frozenset(name for name, text in texts.items() if any(form in text for form in key.forms()))
        for key in keys
    }


def expected(keys: Iterable[Planted]) -> dict[str, frozenset[str]]:
    """What `found` has to be."""
    return {key.name: key.belongs for key in keys}
