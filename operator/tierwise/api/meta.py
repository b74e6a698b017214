"""What every object has: metadata, a spec, a status with conditions; and how a manifest becomes one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Generic, Self, TypeVar

from pydantic import BeforeValidator, Field, PlainSerializer, ValidationError, WithJsonSchema

from tierwise.api.base import ApiModel, FieldError, InvalidObject, Rule, StatusModel, field_errors
from tierwise.api.scalars import FrozenMap, Int

GROUP = "tierwise.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"


@dataclass(frozen=True, slots=True, order=True)
class ObjectKey:
    """Names one object of a known kind; sorts by namespace, then name."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


def _read_time(value: object) -> datetime:
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else value
    except ValueError:
        moment = None
    if not isinstance(moment, datetime) or moment.tzinfo is None:
        raise ValueError('write a time with its zone, such as "2026-11-25T07:00:00Z"')
    return moment.astimezone(UTC)


Time = Annotated[
    datetime,
    BeforeValidator(_read_time),
    PlainSerializer(lambda moment: moment.strftime("%Y-%m-%dT%H:%M:%SZ"), return_type=str),
    WithJsonSchema({"type": "string", "format": "date-time", "maxLength": 64}),
]
"""A moment, aware, in UTC; written to the second as RFC 3339."""


class Provenance(StrEnum):
    """Where a figure comes from."""

    MEASURED = "Measured"
    ESTIMATED = "Estimated"
    DECLARED = "Declared"


class ConditionStatus(StrEnum):
    """Whether a condition holds."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class Condition(StatusModel):
    """One observation about the object, in the form that kubectl wait, kstatus and Argo CD understand."""

    type: Annotated[str, Field(max_length=316)]
    """What is observed, in CamelCase; `Ready` is always present."""
    status: ConditionStatus
    """True, False, or Unknown when it can not be told."""
    observed_generation: Annotated[Int | None, Field(ge=0)] = None
    """The metadata.generation that was looked at; when lower than the object's, the condition is about an older
    spec."""
    last_transition_time: Time
    """When status last changed."""
    reason: Annotated[str, Field(max_length=1024)]
    """Why, as one stable CamelCase word for programs."""
    message: Annotated[str, Field(max_length=4096)] = ""
    """Why, for people, with the remedy where there is one."""


Conditions = Annotated[
    tuple[Condition, ...],
    Field(
        max_length=16,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    ),
]


class OwnerReference(StatusModel):
    """The object that owns this one."""

    api_version: str = ""
    kind: str = ""
    name: str = ""
    uid: str = ""
    controller: bool = False


class ObjectMeta(StatusModel):
    """The part of Kubernetes' metadata that Tierwise reads."""

    name: str
    namespace: str = ""
    uid: str = ""
    generation: int = 0
    resource_version: str = ""
    creation_timestamp: Time | None = None
    deletion_timestamp: Time | None = None
    labels: FrozenMap[str] = FrozenMap()
    annotations: FrozenMap[str] = FrozenMap()
    owner_references: tuple[OwnerReference, ...] = ()
    finalizers: tuple[str, ...] = ()


NAME_IN_METRICS = Rule(
    "self.metadata.name.size() <= 63 && self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",
    'metadata.name must be at most 63 lower-case letters, digits and "-": it shows in metrics; choose another name',
    lambda o: re.fullmatch("[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", o.metadata.name) is not None,
    "metadata.name",
)
"""Of kinds whose name is a label of metrics."""


@dataclass(frozen=True, slots=True)
class PrinterColumn:
    """A column of `kubectl get`."""

    name: str
    json_path: str
    description: str
    type: str = "string"
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Kind:
    """How a kind is called.

    Attributes:
        kind: in manifests.
        plural: in paths and on kubectl's command line.
        short_name: for people who type a lot.
        columns: of `kubectl get`.
    """

    kind: str
    plural: str
    short_name: str
    columns: tuple[PrinterColumn, ...]

    @property
    def singular(self) -> str:
        """Lower case, as kubectl prints it."""
        return self.kind.lower()


SpecT = TypeVar("SpecT", bound=ApiModel)
StatusT = TypeVar("StatusT", bound=StatusModel)


class ApiObject(StatusModel, Generic[SpecT, StatusT]):
    """One object: what a user wants (`spec`) and what Tierwise sees (`status`)."""

    KIND: ClassVar[Kind]

    metadata: ObjectMeta
    spec: SpecT
    status: StatusT
    unreadable_status: Annotated[tuple[FieldError, ...], Field(exclude=True)] = ()
    """Status fields that could not be read (from another version of Tierwise) and count as unknown."""

    @property
    def key(self) -> ObjectKey:
        """Namespace and name."""
        return ObjectKey(self.metadata.namespace, self.metadata.name)

    @classmethod
    def parse(cls, body: Mapping[str, Any]) -> Self:
        """Read a manifest or what the API server returned.

        A status field that can not be read is left out and listed in `unreadable_status`: the spec decides whether
        an object is valid, and what is unknown is absent.

        Raises: InvalidObject: with every wrong field, its value and the remedy.
        """
        metadata = body.get("metadata")
        name = str(metadata.get("name", "")) if isinstance(metadata, Mapping) else ""
        wrong = cls._wrong_type(body)
        if wrong:
            raise InvalidObject(cls.KIND.kind, name, wrong)
        status, unreadable = cls._read_status(body.get("status"))
        given = {key: _plain(body[key]) for key in ("metadata", "spec") if key in body}
        try:
            return cls.model_validate(given | {"status": status, "unreadable_status": unreadable})
        except ValidationError as error:
            raise InvalidObject(cls.KIND.kind, name, field_errors(error)) from error

    def manifest(self) -> dict[str, Any]:
        """The whole object as a manifest, without what is empty."""
        return {"apiVersion": API_VERSION, "kind": self.KIND.kind, **self.dump()}

    @classmethod
    def _wrong_type(cls, body: Mapping[str, Any]) -> tuple[FieldError, ...]:
        expected = {"apiVersion": API_VERSION, "kind": cls.KIND.kind}
        return tuple(
            FieldError(field, repr(body[field]), f"write {value}")
            for field, value in expected.items()
            if field in body and body[field] != value
        )

    @classmethod
    def _read_status(cls, given: object) -> tuple[StatusT, tuple[FieldError, ...]]:
        model = cls.model_fields["status"].annotation
        if not isinstance(model, type) or not issubclass(
            model, StatusModel
        ):  # pragma: no cover - the class statement guarantees it
            raise TypeError(f"{cls.__name__} has no status model")
        fields = dict(given) if isinstance(given, Mapping) else {}
        try:
            return model.model_validate(_plain(fields)), ()  # type: ignore[return-value]  # mypy can not tie the field to StatusT
        except ValidationError as error:
            unreadable = field_errors(error, "status")
            bad = {str(detail["loc"][0]) for detail in error.errors() if detail["loc"]}
            kept = {key: value for key, value in fields.items() if key not in bad}
            return model.model_validate(_plain(kept)), unreadable  # type: ignore[return-value]  # as above


def _plain(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    """Plain dicts all the way down (kopf hands out read-only views), and 1.0 as 1: JSON knows one kind of number."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
