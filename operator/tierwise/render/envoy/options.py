"""What a platform team may set about the gateway; everything else follows from tiers and policies."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class JwtIssuer:
    """One issuer of signed tokens (JWT, RFC 7519) that gateways believe.

    Attributes:
        name: for people. issuer: the tokens' `iss`. audiences: one of which the tokens' `aud` names.
        claim: that names the caller; a dot leads into an object.
        jwks: its public keys (RFC 7517), or jwks_uri: where it publishes them. Exactly one is set.
        ca_bundle: certificates, in PEM, for jwks_uri; None: the gateway's system certificates.
    """

    name: str
    issuer: str
    audiences: tuple[str, ...]
    claim: str = "sub"
    jwks: str = ""
    jwks_uri: str = ""
    ca_bundle: str | None = None


@dataclass(frozen=True, slots=True)
class Authentication:
    """Callers prove who they are: by an API key of a Consumer, or by a token of one of these issuers."""

    jwt: tuple[JwtIssuer, ...] = ()


@dataclass(frozen=True, slots=True)
class Tracing:
    """Where spans of requests go, by OTLP over gRPC.

    Attributes:
        host, port: of the collector.
        sampling_percent: of requests whose client does not say itself, by `traceparent`, whether they are traced.
    """

    host: str
    port: int = 4317
    sampling_percent: float = 1.0


@dataclass(frozen=True, slots=True)
class GatewayOptions:
    """Settings of every gateway.

    Attributes:
        port: TCP port of the OpenAI API. address: what it binds.
        system_ca_path: file on the gateway with the certificates that providers are verified against by default.
        max_body_bytes: largest request body; each is held in memory once while its model is read.
        idle_timeout_seconds: longest silence of a request or stream; a completion that is not streamed is silent until
            it is done.
        body_timeout_seconds: longest time for a request to arrive whole: 16 MiB take it at 1.1 Mbit/s.
        tracing: spans of requests; None: none.
        slow_start_seconds: time over which a replica that has just become ready comes to its full share of requests:
            its caches are cold, and the first requests compile or load things. Not for tiers with affinity.
        access_log: write one JSON line per request (no prompt, no answer) to standard output.
        authentication: how callers prove who they are; None: not at all, for trials.
    """

    port: int = 8080
    address: str = "0.0.0.0"  # noqa: S104 - a gateway listens on its Pod's address
    system_ca_path: str = "/etc/ssl/certs/ca-certificates.crt"
    max_body_bytes: int = 16 * 1024 * 1024
    idle_timeout_seconds: float = 900.0
    body_timeout_seconds: float = 120.0
    slow_start_seconds: float = 30.0
    access_log: bool = True
    authentication: Authentication | None = None
    tracing: Tracing | None = None


DEFAULTS = GatewayOptions()
