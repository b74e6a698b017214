"""The part of a ModelTier that names a provider outside of Tierwise's hands."""

from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from tierwise.api.base import ApiModel, Rule
from tierwise.api.scalars import Bool, Duration, Int, Money
from tierwise.api.shapes import (
    AddedHeaderValue,
    BaseUrl,
    CredentialPrefix,
    Currency,
    HeaderName,
    ObjectName,
    SecretKey,
    list_map,
    unique,
)

_RESERVED_HEADERS = ("authorization", "connection", "content-length", "content-type", "host", "transfer-encoding")


class CredentialsRef(ApiModel):
    """A key of a Secret in the tier's namespace that holds the provider's credential."""

    name: ObjectName
    """Name of the Secret."""
    key: SecretKey = "token"
    """Key of the Secret's data whose value is the credential, without the prefix."""
    header: HeaderName = "authorization"
    """Request header that carries the credential: authorization for most providers, api-key or x-api-key for some."""
    prefix: CredentialPrefix = "Bearer "
    """What stands before the credential in the header; write "" for a bare key."""


class TokenPrice(ApiModel):
    """Price per million tokens, as the provider publishes it."""

    input_per_million_tokens: Money
    """Price of one million prompt tokens, as a quoted decimal number such as "3.00"."""
    cached_input_per_million_tokens: Money | None = None
    """Price of one million prompt tokens that the provider serves from its cache. When absent they cost the full
    input price."""
    output_per_million_tokens: Money
    """Price of one million generated tokens, as a quoted decimal number such as "15.00"."""
    currency: Currency = "USD"
    """ISO 4217 code of the price's currency."""


class ProviderLimits(ApiModel):
    """Rate limits of the provider's contract, which the planner and the gateways stay below."""

    requests_per_minute: Annotated[Int | None, Field(ge=1, le=100_000_000)] = None
    """Requests per minute that the provider accepts. When absent: not limited."""
    tokens_per_minute: Annotated[Int | None, Field(ge=1, le=1_000_000_000_000)] = None
    """Tokens per minute, prompt and generated together, that the provider accepts. When absent: not limited. A request
    counts beforehand: a quarter of its bytes, and max_tokens or, without it, 512."""


class StreamUsage(StrEnum):
    """When a stream of the provider reports its tokens."""

    ON_REQUEST = "OnRequest"
    ALWAYS = "Always"


class DeclaredLatency(ApiModel):
    """Latency to assume until it has been measured."""

    ttft_p95: Duration | None = None
    """95th percentile of the time to first token, such as "900ms"."""
    inter_token_p95: Duration | None = None
    """95th percentile over requests of the mean time between a request's tokens, such as "40ms"."""


class ExternalHeader(ApiModel):
    """A header that every request to the provider carries."""

    name: HeaderName
    """Name in lower case."""
    value: AddedHeaderValue
    """Value. Not for secrets: use credentialsRef."""


class External(ApiModel):
    """A provider's OpenAI-compatible API."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!self.url.startsWith('http://') || (has(self.allowPlaintext) && self.allowPlaintext)",
            "url is http: prompts and the credential would travel in the clear; write https, or set "
            "allowPlaintext: true when the network between gateway and provider is trusted (as inside the cluster)",
            lambda e: not e.url.startswith("http://") or e.allow_plaintext,
            "url",
        ),
        Rule(
            "!has(self.caBundle) || (self.caBundle.contains('-----BEGIN CERTIFICATE-----') && "
            "!self.caBundle.contains('PRIVATE KEY'))",
            "caBundle must hold certificates in PEM (BEGIN CERTIFICATE to END CERTIFICATE) and no private key",
            lambda e: (
                e.ca_bundle is None
                or ("-----BEGIN CERTIFICATE-----" in e.ca_bundle and "PRIVATE KEY" not in e.ca_bundle)
            ),
            "caBundle",
        ),
        Rule(
            "!has(self.headers) || !has(self.credentialsRef) || "
            "!self.headers.exists(h, h.name == self.credentialsRef.header)",
            "headers sets the header that credentialsRef fills: remove it from headers",
            lambda e: e.credentials_ref is None or e.credentials_ref.header not in {h.name for h in e.headers},
            "headers",
        ),
        Rule(
            f"!has(self.headers) || self.headers.all(h, !(h.name in {list(_RESERVED_HEADERS)}))",
            f"headers may not set {', '.join(_RESERVED_HEADERS)}: use credentialsRef for a credential, the gateway "
            "sets the rest",
            lambda e: not any(h.name in _RESERVED_HEADERS for h in e.headers),
            "headers",
        ),
    )

    url: BaseUrl
    """Base URL of the API up to and including the version, such as "https://api.provider.example/v1"."""
    credentials_ref: CredentialsRef | None = None
    """Where the provider's credential is kept. When absent, requests carry none; the client's own is never passed
    on."""
    ca_bundle: Annotated[str | None, Field(min_length=1, max_length=65_536)] = None
    """Certificates, in PEM, that the provider's certificate must chain to. When absent: the gateway's system
    certificates."""
    allow_plaintext: Bool = False
    """Permits an http URL. Only for addresses whose network is trusted, such as another Service in the cluster."""
    headers: Annotated[
        tuple[ExternalHeader, ...],
        Field(max_length=16, json_schema_extra=list_map("name")),
        unique("headers names a header twice: keep one", lambda h: h.name),
    ] = ()
    """Headers that every request to the provider carries, such as an API version."""
    price: TokenPrice | None = None
    """Price per token. When absent the tier's cost is unknown: the loop takes it for dear, and budgets list it."""
    limits: ProviderLimits | None = None
    """Rate limits of the contract. Gateways send a tenth at once and nine tenths in a minute at most, the rest goes to
    the next tier. When absent: not limited. A pause that the provider asks for (Retry-After) is kept in any case."""
    stream_usage: StreamUsage = StreamUsage.ON_REQUEST
    """How streams report their tokens: OnRequest, as OpenAI has it: the gateway asks with stream_options.include_usage.
    Always: unasked, by providers that refuse this option; stream_options is then taken out of requests."""
    latency: DeclaredLatency | None = None
    """Latency to assume until it has been measured."""
