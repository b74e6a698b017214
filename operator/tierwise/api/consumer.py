"""Consumer: a caller of a namespace's models, and what it proves itself with."""

from typing import Annotated, ClassVar

from pydantic import Field

from tierwise.api.base import ApiModel, Rule, StatusModel
from tierwise.api.meta import NAME_IN_METRICS, ApiObject, Conditions, Kind, PrinterColumn, Time
from tierwise.api.scalars import Bool, Int
from tierwise.api.shapes import ATOMIC, Issuer, ObjectName, SecretKey, Subject, unique


class ApiKey(ApiModel):
    """A key of a Secret in the consumer's namespace that holds an API key."""

    name: ObjectName
    """Name of the Secret."""
    key: SecretKey = "token"
    """Key of the Secret's data whose value is the API key: 20 to 512 printable ASCII characters without spaces."""
    expires_at: Time | None = None
    """When gateways stop accepting it, such as "2027-01-31T00:00:00Z". When absent: never."""


class JwtIdentity(ApiModel):
    """Tokens of an issuer that the platform team has set up, by the name that they carry."""

    issuer: Issuer
    """The token's `iss`, exactly: one of those in the chart's gateway.authentication.jwt."""
    subject: Subject
    """Value of the claim that names the caller (`sub`, unless the platform team chose another)."""


class ConsumerSpec(ApiModel):
    """What the user wants of the consumer."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "has(self.apiKeys) || has(self.jwt)",
            "the consumer has nothing to prove itself with: set apiKeys, jwt or both",
            lambda s: bool(s.api_keys or s.jwt),
        ),
    )

    api_keys: Annotated[
        tuple[ApiKey, ...] | None,
        Field(min_length=1, max_length=8, json_schema_extra=ATOMIC),
        unique("apiKeys lists a key of a Secret twice: keep one", lambda one: (one.name, one.key)),
    ] = None
    """API keys, all of which are accepted: to rotate, add the new one, move the callers, remove the old one."""
    jwt: Annotated[
        tuple[JwtIdentity, ...] | None,
        Field(min_length=1, max_length=8, json_schema_extra=ATOMIC),
        unique("jwt lists an identity twice: keep one", lambda one: (one.issuer, one.subject)),
    ] = None
    """Identities in signed tokens. An identity that several namespaces list reaches all of them by models written
    `namespace/model`, and the oldest Consumer's by models without."""
    suspend: Bool = False
    """Refuses all of the consumer's requests from now on."""


Count = Annotated[Int, Field(ge=0)]


class ConsumerStatus(StatusModel):
    """What Tierwise sees."""

    observed_generation: Count | None = None
    """The metadata.generation that this status is about."""
    conditions: Conditions = ()
    """Ready is always present; Stalled only when True."""
    accepted_keys: Count | None = None
    """API keys that gateways accept now."""
    next_expiry: Time | None = None
    """When the next of them expires; absent when none does."""


class Consumer(ApiObject[ConsumerSpec, ConsumerStatus]):
    """A caller of this namespace's models: what it proves itself with. It reaches no other namespace's."""

    RULES: ClassVar[tuple[Rule, ...]] = (NAME_IN_METRICS,)
    KIND: ClassVar[Kind] = Kind(
        kind="Consumer",
        plural="consumers",
        short_name="ncon",
        columns=(
            PrinterColumn(
                "Ready", '.status.conditions[?(@.type=="Ready")].status', "Whether gateways accept the consumer"
            ),
            PrinterColumn("Reason", '.status.conditions[?(@.type=="Ready")].reason', "Why they do or do not"),
            PrinterColumn("Keys", ".status.acceptedKeys", "API keys that are accepted now", "integer"),
            PrinterColumn("Expires", ".status.nextExpiry", "When the next of them expires", "string"),
            PrinterColumn("Suspended", ".spec.suspend", "Whether all its requests are refused", "boolean", 1),
            PrinterColumn("Age", ".metadata.creationTimestamp", "Time since creation", "date"),
        ),
    )

    status: ConsumerStatus = ConsumerStatus()
