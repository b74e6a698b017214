"""Faults that the simulator can be told to have, at start or while it runs."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

from tierwise.errors import TierwiseError


class FaultError(TierwiseError):
    """A fault that can not be understood."""


@dataclass(frozen=True, slots=True)
class Faults:
    """What goes wrong. The default is nothing.

    Attributes:
        outage: every request fails with `status`.
        error_rate: share of requests that fail with `status`, 0 to 1.
        status: HTTP status of a failure.
        fail_next: so many requests fail with `status`, then none.
        retry_after: seconds that failures ask clients to wait; 0: they say nothing.
        reset_rate: share of requests whose connection is cut before the response, 0 to 1.
        stall_after_tokens: a stream stops after so many tokens and stays open; 0: never.
        cut_after_tokens: a stream's connection is cut after so many tokens; 0: never.
        slow: all times are multiplied by this (takes effect on later iterations), > 0.
        unhealthy: `/health` answers 503.
    """

    outage: bool = False
    error_rate: float = 0.0
    status: int = 503
    fail_next: int = 0
    retry_after: float = 0.0
    reset_rate: float = 0.0
    stall_after_tokens: int = 0
    cut_after_tokens: int = 0
    slow: float = 1.0
    unhealthy: bool = False

    def __post_init__(self) -> None:
        for name in ("error_rate", "reset_rate"):
            if not 0 <= getattr(self, name) <= 1:
                raise FaultError(f"{name} is {getattr(self, name)}; write a share between 0 and 1")
        if not 400 <= self.status <= 599:
            raise FaultError(f"status is {self.status}; write an HTTP error between 400 and 599")
        if not (self.slow > 0 and math.isfinite(self.slow)):
            raise FaultError(f"slow is {self.slow}; write a factor above 0")
        for name in ("stall_after_tokens", "cut_after_tokens", "fail_next", "retry_after"):
            if not (getattr(self, name) >= 0 and math.isfinite(getattr(self, name))):
                raise FaultError(f"{name} is {getattr(self, name)}; it must not be negative")

    @classmethod
    def parse(cls, text: str) -> "Faults":
        """Faults from `name=value;name=value`; empty is none.

        Raises:
            FaultError: naming the part that is wrong.
        """
        values: dict[str, object] = {}
        for part in filter(None, (part.strip() for part in text.split(";"))):
            name, separator, value = part.partition("=")
            values[name.strip()] = value.strip() if separator else "true"
        return cls().changed(values)

    def changed(self, values: Mapping[str, object]) -> "Faults":
        """These faults with some values replaced; values may be text.

        Raises:
            FaultError: for a name or value that does not fit.
        """
        kinds = {item.name: type(item.default) for item in fields(self)}
        converted: dict[str, object] = {}
        for name, value in values.items():
            kind = kinds.get(name)
            if kind is None:
                raise FaultError(f"no fault {name!r}; there are {', '.join(sorted(kinds))}")
            converted[name] = _convert(name, value, kind)
        return Faults(**{**asdict(self), **converted})

    def as_dict(self) -> dict[str, object]:
        """All values, for JSON."""
        return asdict(self)


def _convert(name: str, value: object, kind: type) -> object:
    text = str(value).lower()
    if kind is bool:
        if text not in {"true", "false", "1", "0"}:
            raise FaultError(f"{name} is {value!r}; write true or false")
        return text in {"true", "1"}
    try:
        return kind(text)
    except ValueError as error:
        raise FaultError(f"{name} is {value!r}; write a number") from error
