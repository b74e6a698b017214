"""What all models of the API share: immutability, aliases, rules across fields, and errors that say what to do.

A rule is written once and holds twice: as CEL in the CustomResourceDefinition, for the API server, and as a Python
predicate, for objects that reach the operator some other way (a file, an older definition). A test holds both
against the same manifests.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    GetJsonSchemaHandler,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import PydanticCustomError, core_schema

from tierwise.errors import TierwiseError


@dataclass(frozen=True, slots=True)
class Rule:
    """A statement about several fields of one object.

    Attributes:
        cel: the statement in CEL; `self` is the object.
        message: names the field and the remedy.
        holds: the same statement in Python.
        path: the field, relative to the object, that an error points at ("" is the object), without leading dot.
    """

    cel: str
    message: str
    holds: Callable[[Any], bool]
    path: str = ""

    def schema(self) -> dict[str, str]:
        """The rule as an entry of `x-kubernetes-validations`."""
        entry = {"rule": self.cel, "message": self.message}
        # The API server takes only paths of fields that the schema describes: not those of metadata.
        named = self.path and not self.path.startswith("metadata")
        return entry | {"fieldPath": f".{self.path}"} if named else entry


@dataclass(frozen=True, slots=True, order=True)
class FieldError:
    """One thing wrong with one object.

    Attributes:
        field: its path, such as `spec.classes[1].tiers`.
        value: what stands there, shortened.
        remedy: what to write instead.
    """

    field: str
    value: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.field}: {self.remedy} (is: {self.value})" if self.value else f"{self.field}: {self.remedy}"


class InvalidObject(TierwiseError):  # noqa: N818 - the name that users of the API read
    """An object does not follow the API; `errors` says where and what to do."""

    def __init__(self, kind: str, name: str, errors: tuple[FieldError, ...]) -> None:
        super().__init__(f"{kind} {name or '(unnamed)'} is invalid: " + "; ".join(map(str, errors)))
        self.kind = kind
        self.name = name
        self.errors = errors


class ApiModel(BaseModel):
    """A part of a spec: immutable, no unknown fields, rules checked."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=to_camel,
        populate_by_name=True,
        use_attribute_docstrings=True,
        arbitrary_types_allowed=False,
    )
    RULES: ClassVar[tuple[Rule, ...]] = ()

    @model_validator(mode="after")
    def _check_rules(self) -> Self:
        broken = [rule for rule in self.RULES if not rule.holds(self)]
        if broken:
            raise PydanticCustomError("rules", "cross-field rules", {"broken": broken})
        return self

    @model_serializer(mode="wrap")
    def _leave_out_unknown(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Only the model's own fields: an `emptyDir: {}` in a pod template means something.
        return {key: value for key, value in serialize(self).items() if value is not None and value not in ([], {})}

    def dump(self) -> dict[str, Any]:
        """As YAML would hold it: camelCase, strings for money and time; what is unknown or empty is absent."""
        return self.model_dump(mode="json", by_alias=True)

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Adds the rules, as CEL."""
        described = handler.resolve_ref_schema(handler(schema))
        if cls.RULES:
            described["x-kubernetes-validations"] = [rule.schema() for rule in cls.RULES]
        return described


class StatusModel(ApiModel):
    """A part of a status: as `ApiModel`, but fields of a newer operator are ignored."""

    model_config = ConfigDict(extra="ignore")


_REMEDIES = {
    "missing": "is required: add it",
    "extra_forbidden": "is not a field of this kind: remove it or correct its name",
}


def field_errors(error: ValidationError, prefix: str = "") -> tuple[FieldError, ...]:
    """What pydantic found, in the API's words, sorted."""
    found: list[FieldError] = []
    for detail in error.errors(include_url=False):
        path = _path(detail["loc"], prefix)
        if detail["type"] == "rules":
            for rule in detail["ctx"]["broken"]:
                full = f"{path}.{rule.path}" if rule.path and path else rule.path or path
                found.append(FieldError(full, "", rule.message))
        else:
            kind = detail["type"]
            value = "" if kind in {"missing", "extra_forbidden"} else _shown(detail["input"])
            found.append(FieldError(path, value, _REMEDIES.get(kind, detail["msg"])))
    return tuple(sorted({error for error in found if not _follows_from_others(error, found)}))


def _follows_from_others(error: FieldError, found: list[FieldError]) -> bool:
    # pydantic counts only the valid items of a list: one that is wrong would also make its list too short.
    too_short = error.remedy.startswith("Tuple should have at least")
    return too_short and any(other.field.startswith(f"{error.field}[") for other in found)


def _path(location: tuple[int | str, ...], prefix: str) -> str:
    path = prefix
    for step in location:
        path += f"[{step}]" if isinstance(step, int) else f".{step}" if path else step
    return path


def _shown(value: object) -> str:
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
