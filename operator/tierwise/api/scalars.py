"""The scalar types of the API: durations, money, scores, quantities, sensitivity and an immutable map.

Each knows four things: how to read what a user wrote, how to write it back, its structural schema, and the remedy
when it is wrong. The remedy is one sentence, given by the API server (as the message of a CEL rule) and by these
models alike.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Any, Generic, Self, TypeVar, get_args

from pydantic import (
    BeforeValidator,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    PlainSerializer,
    Strict,
    WithJsonSchema,
)
from pydantic import Field as PydanticField
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import PydanticCustomError, core_schema

_NANOSECONDS = {"ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
# Five digits a unit keep the sum within the 64-bit nanoseconds of CEL and Go; `[.]` needs no escaping in CEL.
_DURATION = "^([0-9]{1,5}([.][0-9]{1,6})?(ms|s|m|h)){1,4}$"
_DURATION_PART = re.compile(r"([0-9]{1,5}(?:[.][0-9]{1,6})?)(ms|s|m|h)")
DURATION_REMEDY = 'write a time above zero with its unit, such as "800ms", "30s" or "1h30m" (units: ms, s, m, h)'


@dataclass(frozen=True, slots=True, order=True)
class Duration:
    """A length of time, exact to the nanosecond.

    In YAML it is a Go duration string ("800ms", "1h30m"); `seconds` is what the arithmetic uses.
    """

    nanoseconds: int

    @property
    def seconds(self) -> float:
        """The length in seconds."""
        return self.nanoseconds / 10**9

    @classmethod
    def from_seconds(cls, seconds: float | Decimal) -> Self:
        """The duration of so many seconds, rounded to the microsecond (what the text form can hold)."""
        return cls(round(Decimal(str(seconds)) * 10**6) * 10**3)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a Go duration string.

        Raises:
            ValueError: not such a string; the message is the remedy.
        """
        if len(text) > 64 or not re.fullmatch(_DURATION[1:-1], text):
            raise ValueError(DURATION_REMEDY)
        total = sum(Decimal(number) * _NANOSECONDS[unit] for number, unit in _DURATION_PART.findall(text))
        return cls(int(total))

    def __str__(self) -> str:
        """The shortest Go duration string of this length."""
        if not self.nanoseconds:
            return "0s"
        minutes, rest = divmod(self.nanoseconds, 60 * 10**9)
        hours, minutes = divmod(minutes, 60)
        text = (f"{hours}h" if hours else "") + (f"{minutes}m" if minutes else "")
        if not rest:
            return text
        if not text and rest < 10**9:
            return f"{_plain(Decimal(rest) / 10**6)}ms"
        return f"{text}{_plain(Decimal(rest) / 10**9)}s"

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: object, _handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        """Read from text or an instance, write as text."""
        return core_schema.no_info_plain_validator_function(
            cls._read, serialization=core_schema.plain_serializer_function_ser_schema(str)
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, _schema: object, _handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """A string that a CEL rule checks, so that the API server can say what to write."""
        rule = f"self.matches('{_DURATION}') && duration(self) > duration('0s')"
        return _text(rule, DURATION_REMEDY, max_length=64)

    @classmethod
    def _read(cls, value: object) -> Self:
        if isinstance(value, cls):
            return value
        parsed = None
        if isinstance(value, str):
            try:
                parsed = cls.parse(value)
            except ValueError:
                parsed = None
        if parsed is None or not parsed.nanoseconds:
            raise PydanticCustomError("duration", DURATION_REMEDY)
        return parsed


def _plain(number: Decimal) -> str:
    """A decimal without exponent and without trailing zeros."""
    text = format(number, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def _text(rule: str, remedy: str, *, max_length: int) -> dict[str, Any]:
    return {
        "type": "string",
        "maxLength": max_length,
        "x-kubernetes-validations": [{"rule": rule, "message": remedy}],
    }


def _decimal_reader(pattern: str, remedy: str, *, positive: bool) -> Callable[[object], Decimal]:
    compiled = re.compile(pattern[1:-1])

    def read(value: object) -> Decimal:
        text = format(value, "f") if isinstance(value, Decimal) else value
        if isinstance(text, str) and compiled.fullmatch(text):
            number = Decimal(text)
            if number > 0 or not positive:
                return number
        raise PydanticCustomError("decimal", remedy)

    return read


def _decimal(pattern: str, remedy: str, *, positive: bool = False) -> tuple[Any, ...]:
    rule = f"self.matches('{pattern}')" + (" && double(self) > 0.0" if positive else "")
    return (
        BeforeValidator(_decimal_reader(pattern, remedy, positive=positive)),
        PlainSerializer(lambda number: format(number, "f"), return_type=str),
        WithJsonSchema(_text(rule, remedy, max_length=32)),
    )


_AMOUNT = "^(0|[1-9][0-9]{0,11})([.][0-9]{1,9})?$"
MONEY_REMEDY = (
    'write an amount as a quoted decimal number, not negative, without sign, exponent or currency, such as "2.95"'
)
POSITIVE_REMEDY = 'write a quoted decimal number above zero, without sign or exponent, such as "6.5"'
SCORE_REMEDY = 'write a score as a quoted decimal number from 0 to 1, such as "0.93" (93% is "0.93")'
LOSS_REMEDY = 'write a loss as a quoted decimal number of percentage points from 0 to 100, such as "1" or "0.5"'

_money = _decimal(_AMOUNT, MONEY_REMEDY)
_positive = _decimal(_AMOUNT, POSITIVE_REMEDY, positive=True)
_score = _decimal("^(0([.][0-9]{1,6})?|1([.]0{1,6})?)$", SCORE_REMEDY)
_loss = _decimal("^([0-9]{1,2}([.][0-9]{1,4})?|100([.]0{1,4})?)$", LOSS_REMEDY)

Money = Annotated[Decimal, *_money]
"""An amount, zero allowed, in the currency that stands beside it."""
PositiveDecimal = Annotated[Decimal, *_positive]
"""A decimal number above zero."""
Score = Annotated[Decimal, *_score]
"""A quality score from 0 (never right) to 1 (always right)."""
LossPercent = Annotated[Decimal, *_loss]
"""Percentage points of quality, 0 to 100."""


def _read_figure(value: object) -> Decimal:
    """A computed figure: rounded half-even to 6 decimals, so that equal figures are equal bytes."""
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,18}([.][0-9]{1,9})?", value):
        value = Decimal(value)
    if isinstance(value, Decimal) and value.is_finite():
        rounded = round(value, 6).normalize()
        return Decimal(0) if rounded.is_zero() else rounded
    raise PydanticCustomError("figure", "a decimal number, finite, such as 2.95")


Figure = Annotated[
    Decimal,
    BeforeValidator(_read_figure),
    PlainSerializer(lambda number: format(number, "f"), return_type=str),
    WithJsonSchema({"type": "string", "maxLength": 32}),
]
"""A number of the status: signed, at most 6 decimals, a string in YAML."""
Int = Annotated[int, Strict()]
Bool = Annotated[bool, Strict()]
Percent = Annotated[Int, PydanticField(ge=0, le=100)]


class Sensitivity(StrEnum):
    """How confidential a request is, or how confidential a request a tier may see; ordered, lowest first."""

    PUBLIC = "Public"
    INTERNAL = "Internal"
    CONFIDENTIAL = "Confidential"
    RESTRICTED = "Restricted"

    @property
    def rank(self) -> int:
        """0 for Public to 3 for Restricted."""
        return list(Sensitivity).index(self)

    def __lt__(self, other: object) -> bool:
        return self.rank < other.rank if isinstance(other, Sensitivity) else NotImplemented

    def __le__(self, other: object) -> bool:
        return self.rank <= other.rank if isinstance(other, Sensitivity) else NotImplemented

    def __gt__(self, other: object) -> bool:
        return self.rank > other.rank if isinstance(other, Sensitivity) else NotImplemented

    def __ge__(self, other: object) -> bool:
        return self.rank >= other.rank if isinstance(other, Sensitivity) else NotImplemented


_SUFFIXES: dict[str, Decimal] = {
    "": Decimal(1),
    **{
        s: Decimal(10) ** e
        for s, e in {"n": -9, "u": -6, "m": -3, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}.items()
    },
    **{s: Decimal(2) ** e for s, e in {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40, "Pi": 50, "Ei": 60}.items()},
}
_QUANTITY = re.compile(r"([+-]?(?:[0-9]+(?:[.][0-9]*)?|[.][0-9]+))(?:([numkMGTPE]|[KMGTPE]i)|[eE]([+-]?[0-9]{1,2}))?")
QUANTITY_REMEDY = 'write a Kubernetes quantity that is not negative, such as 1, "500m" or "16Gi"'


@dataclass(frozen=True, slots=True)
class Quantity:
    """A Kubernetes resource quantity: `text` as the user wrote it, `value` as a number; equal when the values are."""

    text: str = field(compare=False)
    value: Decimal

    @classmethod
    def parse(cls, text: str | int) -> Self:
        """Read a quantity, not negative.

        Raises:
            ValueError: not such a quantity; the message is the remedy.
        """
        text = str(text)
        match = _QUANTITY.fullmatch(text) if len(text) <= 32 else None
        if match is None or text.startswith("-"):
            raise ValueError(QUANTITY_REMEDY)
        number, suffix, exponent = match.groups()
        return cls(text, Decimal(number) * _SUFFIXES[suffix or ""] * Decimal(10) ** int(exponent or 0))

    def __str__(self) -> str:
        return self.text

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: object, _handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        """Read from text, an integer or an instance; write as text."""
        return core_schema.no_info_plain_validator_function(
            cls._read, serialization=core_schema.plain_serializer_function_ser_schema(str)
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, _schema: object, _handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Integer or string, as the core API has it."""
        rule = "type(self) == int ? self >= 0 : (isQuantity(self) && quantity(self).compareTo(quantity('0')) >= 0)"
        return {
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "x-kubernetes-int-or-string": True,
            "maxLength": 32,
            "x-kubernetes-validations": [{"rule": rule, "message": QUANTITY_REMEDY}],
        }

    @classmethod
    def _read(cls, value: object) -> Self:
        if isinstance(value, cls):
            return value
        if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool) and value < 2**63):
            try:
                return cls.parse(value)
            except ValueError:
                pass
        raise PydanticCustomError("quantity", QUANTITY_REMEDY)


V = TypeVar("V")


class FrozenMap(Mapping[str, V], Generic[V]):
    """An immutable, hashable map of strings, sorted by key; nested maps and lists are frozen too."""

    __slots__ = ("_items",)
    _items: dict[str, V]

    def __init__(self, items: Mapping[str, V] | None = None) -> None:
        self._items = {key: _freeze(value) for key, value in sorted((items or {}).items())}

    def __getitem__(self, key: str) -> V:
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return hash(tuple(self._items.items()))

    def __eq__(self, other: object) -> bool:
        return dict(self) == dict(other) if isinstance(other, Mapping) else NotImplemented

    def __repr__(self) -> str:
        return f"FrozenMap({self._items!r})"

    def thaw(self) -> dict[str, Any]:
        """A plain, deep copy that may be changed."""
        return {key: _thaw(value) for key, value in self._items.items()}

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        """Any mapping goes in, a frozen one comes out; a plain dict is written."""
        (values,) = get_args(source) or (object,)
        plain = core_schema.dict_schema(core_schema.str_schema(), handler.generate_schema(values))
        thawed = core_schema.no_info_before_validator_function(
            lambda value: dict(value) if isinstance(value, Mapping) else value, plain
        )
        return core_schema.no_info_after_validator_function(
            cls, thawed, serialization=core_schema.plain_serializer_function_ser_schema(_thaw)
        )


def _freeze(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    if isinstance(value, Mapping):
        return FrozenMap(value)
    return tuple(_freeze(item) for item in value) if isinstance(value, (list, tuple)) else value


def _thaw(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    if isinstance(value, FrozenMap):
        return value.thaw()
    if isinstance(value, (list, tuple)):
        return [_thaw(item) for item in value]
    return str(value) if isinstance(value, Quantity) else value


FreeForm = Annotated[
    FrozenMap[object], WithJsonSchema({"type": "object", "x-kubernetes-preserve-unknown-fields": True})
]
"""Fields of another API that pass through unread; `thaw()` gives a plain dict."""
