"""The filters that an attempt passes on its way to one tier.

Attempts of one request share their headers: what the filters of an earlier attempt added, a credential above all, would
travel on to the next tier. So every chain begins by removing all of it, and then sets each value absolutely.
"""

from typing import Any

from tierwise.render.envoy import lua, provider_lua
from tierwise.render.envoy.fields import (
    ADS,
    GATEWAY_HEADERS,
    METADATA,
    PROVIDER_HEADER,
    REQUEST_UNITS_HEADER,
    ROUTE_HEADER,
    SATURATED_HEADER,
    SENSITIVITY_HEADER,
    UNREACHED_HEADER,
    extension,
    set_header,
    typed,
)
from tierwise.render.envoy.request_limits import REQUEST_FILTER

CREDENTIAL_HEADERS = ("authorization", "api-key", "x-api-key", "x-goog-api-key", "proxy-authorization", "cookie")
"""Headers that carry a client's or a provider's credential. The client's own never reaches a tier."""

PRIVATE_HEADERS = (
    *GATEWAY_HEADERS,
    SENSITIVITY_HEADER,
    "x-envoy-expected-rq-timeout-ms",
    "x-envoy-original-host",
    "x-envoy-original-path",
    "baggage",
    "x-envoy-external-address",
    "x-envoy-internal",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "forwarded",
    # A compressed answer could not be read for its token counts.
    "accept-encoding",
)
"""Headers that say something about the gateway or the client that a tier has no business to know.

Not among them: `x-envoy-attempt-count`. The log that counts arrivals reads it, at times after these filters have run.
"""

HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


OF_ROUTE = (
    f"RoutingPolicy %METADATA(ROUTE:{METADATA}:namespace)%/%METADATA(ROUTE:{METADATA}:policy)%"
    f", class %METADATA(ROUTE:{METADATA}:class)%"
)
"""On whose behalf an attempt is made, for the errors of an inner listener."""


ANSWER_HEADERS = (SATURATED_HEADER, UNREACHED_HEADER)
"""Headers of answers in which the gateway tells itself what to do next: no host may."""


def reset(
    removed: tuple[str, ...], headers: tuple[tuple[str, str], ...], *, read: str = "", of_host: bool = False
) -> dict[str, Any]:
    """Removes `removed`, and all that is private; then sets the tier's own headers, one after the other.

    Args:
        removed: headers that no tier but their owner may see.
        headers: names and values.
        read: the one private header that is left for these values to read; they set it anew.
        of_host: what answers is a host and no listener of the gateway's own: it may not speak for the gateway.
    """
    answers = {"response_mutations": [{"remove": name} for name in ANSWER_HEADERS]} if of_host else {}
    names = sorted({*CREDENTIAL_HEADERS, *PRIVATE_HEADERS, *removed} - {read})
    mutations: list[dict[str, Any]] = [{"remove": name} for name in names]
    mutations += [{"append": set_header(name, value)} for name, value in headers]
    return extension(
        "tierwise.reset",
        "envoy.extensions.filters.http.header_mutation.v3.HeaderMutation",
        mutations={"request_mutations": mutations, **answers},
    )


def relayed(removed: tuple[str, ...], provider: str, request_units: int) -> dict[str, Any]:
    """As `reset`, and tells the relay which cluster to take, on whose behalf, and what a request takes of a limit.

    Args:
        removed: headers that no tier but their owner may see.
        provider: the cluster.
        request_units: of the relay's bucket; 0: there is no limit.
    """
    units = ((REQUEST_UNITS_HEADER, str(request_units)),) if request_units else ()
    return reset(removed, ((PROVIDER_HEADER, provider), (ROUTE_HEADER, OF_ROUTE), *units))


def for_provider(*, token_units: float, refuses_options: bool) -> dict[str, Any]:
    """What only some providers need, see `provider_lua`."""
    return extension(
        "tierwise.external",
        "envoy.extensions.filters.http.lua.v3.Lua",
        default_source_code={"inline_string": provider_lua.SOURCE},
        shared_vm_id=lua.VM_ID,
        filter_context={"token_units": token_units, "refuses_options": refuses_options},
    )


def request_for_tier(*, model: str, base: str, host: str, output_key: str) -> dict[str, Any]:
    """Path, host and body for one tier.

    Args:
        model: name that the tier serves, as it stands in JSON.
        base: replaces the leading `/v1` of the client's path.
        host: of the tier.
        output_key: under which the tier's chat endpoint is told how long an answer may be.
    """
    return extension(
        REQUEST_FILTER,
        "envoy.extensions.filters.http.lua.v3.Lua",
        default_source_code={"inline_string": lua.SOURCE},
        shared_vm_id=lua.VM_ID,
        filter_context={"model": model, "base": base, "host": host, "output_key": output_key},
    )


def credential(*, secret: str, header: str, prefix: str) -> dict[str, Any]:
    """Puts the SDS secret's value into a header, instead of whatever stands there."""
    generic: dict[str, Any] = {"credential": {"name": secret, "sds_config": ADS}, "header": header}
    if prefix:
        generic["header_value_prefix"] = prefix
    return extension(
        "tierwise.credential",
        "envoy.extensions.filters.http.credential_injector.v3.CredentialInjector",
        overwrite=True,
        credential=extension("generic", "envoy.extensions.http.injected_credentials.generic.v3.Generic", **generic),
    )


ENGINE_IDLE_SECONDS = 4
"""A connection to an engine that nobody uses for so long is closed. Engines close theirs after five seconds (uvicorn,
under vLLM and SGLang; llama.cpp): a request on a connection that the other side is just closing would fail."""


def protocol_options(filters: list[dict[str, Any]], *, engine: bool = False) -> dict[str, Any]:
    """HTTP/1.1 to the tier, through these filters.

    Args:
        filters: before the codec.
        engine: connections lead to replicas of an engine.
    """
    more: dict[str, Any] = (
        {"common_http_protocol_options": {"idle_timeout": f"{ENGINE_IDLE_SECONDS}s"}} if engine else {}
    )
    codec = extension("tierwise.codec", "envoy.extensions.filters.http.upstream_codec.v3.UpstreamCodec")
    options = typed(
        HTTP_OPTIONS,
        explicit_http_config={"http_protocol_options": {}},
        http_filters=[*filters, codec],
        **more,
    )
    return {HTTP_OPTIONS: options}
