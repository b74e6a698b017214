"""Who calls: signed tokens and API keys, verified by Envoy's own filters, before anything else looks at a request.

A request that carries a token of a known issuer is its subject's; any other has to carry an API key that some Consumer
lists, or is answered 401. What was presented never travels on.

The keys stand in the configuration in the clear, as `api_key_auth` (work in progress upstream) has it: they travel over
the mTLS channel only, as an extension of their own (ECDS), so that a new key drains no connection. The tokens' issuers
are the platform team's and part of the listener.
"""

import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from tierwise.core.consumers import Access, Identity
from tierwise.core.world import Key
from tierwise.render.envoy import clusters, endpoints
from tierwise.render.envoy.bundle import Resource
from tierwise.render.envoy.fields import (
    ADS,
    CLIENT_HEADER,
    IDENTITY_HEADER,
    ISSUER_HEADER,
    SUBJECT_HEADER,
    extension,
    typed,
)
from tierwise.render.envoy.options import Authentication, GatewayOptions, JwtIssuer
from tierwise.render.envoy.protos import CLUSTER, EXTENSION, TYPE_PREFIX

API_KEYS = "tierwise.keys"
"""Name of the ECDS resource; a namespace's name has no dot."""
_AUTH = "envoy.extensions.filters.http.api_key_auth.v3.ApiKeyAuth"
_JWT = "envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication"
_WITH_MATCHER = "envoy.extensions.common.matching.v3.ExtensionWithMatcher"
_JWKS_PREFIX = "tierwise.jwks/"
_JWKS_TIMEOUT = "5s"
_CLOCK_SKEW_SECONDS = 30

SUBJECT = "^[A-Za-z0-9._@:|/-]+$"
"""What a token's name for its caller has to look like; as in the API's `Subject`."""
MAX_SUBJECT = 128


def identity(of: Key | Identity) -> str:
    """One text for a caller: `namespace/name` by key, `issuer#subject` by token. Neither can look like the other."""
    return f"{of.issuer}#{of.subject}" if isinstance(of, Identity) else str(of)


def condition(identities: tuple[str, ...]) -> dict[str, Any]:
    """The request is one of these callers'."""
    pattern = "|".join(sorted(map(re.escape, identities)))
    return {"name": IDENTITY_HEADER, "string_match": {"safe_regex": {"regex": pattern}}}


def of_namespace(access: Access, namespace: str) -> dict[str, tuple[str, ...]]:
    """Consumer's name -> the identities that are its own, for one namespace."""
    found: dict[str, list[str]] = {}
    for key in sorted(set(access.keys.values())):
        if key.namespace == namespace:
            found.setdefault(key.name, []).append(identity(key))
    for (where, each), key in access.identities.items():
        if where == namespace:
            found.setdefault(key.name, []).append(identity(each))
    return {name: tuple(each) for name, each in sorted(found.items())}


def filters(authentication: Authentication) -> list[dict[str, Any]]:
    """Both ways to prove who calls, in order."""
    found = [_tokens(authentication)] if authentication.jwt else []
    return [*found, _keys_by_discovery()]


def _keys_by_discovery() -> dict[str, Any]:
    return {
        "name": API_KEYS,
        "config_discovery": {
            "config_source": ADS,
            "type_urls": [TYPE_PREFIX + _WITH_MATCHER],
        },
    }


def api_keys(access: Access) -> Resource:
    """The ECDS resource: all keys of all consumers; skipped when a token has told who calls."""
    keys = typed(
        _AUTH,
        credentials=[{"key": value, "client": str(key)} for value, key in access.keys.items()],
        key_sources=[{"header": name} for name in ("authorization", "api-key", "x-api-key")],
        forwarding={"header": CLIENT_HEADER, "hide_credentials": True},
    )
    by_token = {
        "single_predicate": {
            "input": extension(
                "subject", "envoy.type.matcher.v3.HttpRequestHeaderMatchInput", header_name=SUBJECT_HEADER
            ),
            "value_match": {"safe_regex": {"google_re2": {}, "regex": ".+"}},
        }
    }
    skip = {"action": extension("skip", "envoy.extensions.filters.common.matcher.action.v3.SkipFilter")}
    return {
        "@type": EXTENSION,
        "name": API_KEYS,
        "typed_config": typed(
            _WITH_MATCHER,
            xds_matcher={"matcher_list": {"matchers": [{"predicate": by_token, "on_match": skip}]}},
            extension_config={"name": API_KEYS, "typed_config": keys},
        ),
    }


def _tokens(authentication: Authentication) -> dict[str, Any]:
    providers = {issuer.name: _provider(issuer) for issuer in authentication.jwt}
    any_of = [{"provider_name": name} for name in providers]
    return extension(
        "tierwise.tokens",
        _JWT,
        providers=providers,
        rules=[
            {
                "match": {"prefix": "/"},
                # Without a valid token the request's API key decides.
                "requires": {"requires_any": {"requirements": [*any_of, {"allow_missing_or_failed": {}}]}},
            }
        ],
    )


def _provider(issuer: JwtIssuer) -> dict[str, Any]:
    provider: dict[str, Any] = {
        "issuer": issuer.issuer,
        "audiences": list(issuer.audiences),
        "require_expiration": True,
        "clock_skew_seconds": _CLOCK_SKEW_SECONDS,
        "from_headers": [{"name": "authorization", "value_prefix": "Bearer "}],
        "claim_to_headers": [
            {"header_name": ISSUER_HEADER, "claim_name": "iss"},
            {"header_name": SUBJECT_HEADER, "claim_name": issuer.claim},
        ],
    }
    if issuer.jwks_uri:
        provider["remote_jwks"] = {
            "http_uri": {
                "uri": issuer.jwks_uri,
                "cluster": _JWKS_PREFIX + issuer.name,
                "timeout": _JWKS_TIMEOUT,
            },
            "cache_duration": "300s",
            # A gateway is ready without them: an issuer that is down keeps its callers out, nobody else.
            "async_fetch": {"fast_listener": True, "failed_refetch_duration": "5s"},
        }
    else:
        provider["local_jwks"] = {"inline_string": issuer.jwks}
    return provider


def jwks_clusters(authentication: Authentication, options: GatewayOptions) -> dict[str, Resource]:
    """Where issuers publish their keys, by name."""
    return {
        _JWKS_PREFIX + issuer.name: _jwks_cluster(issuer, options) for issuer in authentication.jwt if issuer.jwks_uri
    }


def _jwks_cluster(issuer: JwtIssuer, options: GatewayOptions) -> Resource:
    url = urlsplit(issuer.jwks_uri)
    host = url.hostname or ""
    port = url.port or (443 if url.scheme == "https" else 80)
    name = _JWKS_PREFIX + issuer.name
    cluster: Resource = {
        "@type": CLUSTER,
        "name": name,
        "connect_timeout": _JWKS_TIMEOUT,
        "cluster_type": clusters.dns(respect_dns_ttl=True),
        "load_assignment": {
            "cluster_name": name,
            "endpoints": endpoints.assignment(name, [(host, port)], host)["endpoints"][:1],
        },
    }
    if url.scheme == "https":
        cluster["transport_socket"] = clusters.tls(host, issuer.ca_bundle, options)
    return cluster


def read_issuers(text: str) -> tuple[JwtIssuer, ...]:
    """Issuers as the chart writes them: a JSON list of objects with name, issuer, audiences, claim, jwks, jwksURI.

    Raises:
        ValueError: what is wrong with it, in words for the platform team.
    """
    found = json.loads(text)
    if not isinstance(found, list):
        raise ValueError("gateway.authentication.jwt: write a list of issuers")  # noqa: TRY004 - the caller's one error
    issuers = tuple(_read_issuer(number, each) for number, each in enumerate(found))
    for field in ("name", "issuer"):
        values = [getattr(each, field) for each in issuers]
        if len({*values}) != len(values):
            raise ValueError(f"gateway.authentication.jwt: two issuers have the same {field}: keep one")
    return issuers


_FIELDS = {"name", "issuer", "audiences", "claim", "jwks", "jwksURI", "caBundle"}


def _read_issuer(number: int, given: object) -> JwtIssuer:
    where = f"gateway.authentication.jwt[{number}]"
    if not isinstance(given, Mapping):
        raise ValueError(f"{where}: write an object with name, issuer, audiences and jwksURI or jwks")  # noqa: TRY004 - the caller's one error
    unknown = sorted({*given} - _FIELDS)
    if unknown:
        raise ValueError(f"{where}: {', '.join(unknown)}: not known, write {', '.join(sorted(_FIELDS))}")
    name, issuer = str(given.get("name", "")), str(given.get("issuer", ""))
    if not re.fullmatch("[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", name):
        raise ValueError(f"{where}.name: {name!r}: write lower-case letters, digits and '-'")
    if not re.fullmatch("[!$-~]{1,256}", issuer):
        raise ValueError(f"{where}.issuer: {issuer!r}: write the tokens' iss exactly")
    audiences = given.get("audiences")
    if not isinstance(audiences, list) or not audiences:
        # A token that the issuer made for another service must not open this one.
        raise ValueError(f"{where}.audiences: write what the tokens' aud has to name, such as [tierwise]")
    jwks, uri = given.get("jwks") or "", str(given.get("jwksURI") or "")
    if bool(jwks) == bool(uri):
        raise ValueError(f"{where}: exactly one of jwksURI and jwks has to be set")
    if uri and not re.fullmatch(r"https?://[^\s/?#@]+(/[^\s]*)?", uri):
        raise ValueError(f"{where}.jwksURI: {uri!r}: write a URL such as https://login.example/keys")
    return JwtIssuer(
        name=name,
        issuer=issuer,
        audiences=tuple(str(each) for each in audiences),
        claim=str(given.get("claim") or "sub"),
        jwks=jwks if isinstance(jwks, str) else json.dumps(jwks, sort_keys=True),
        jwks_uri=uri,
        ca_bundle=str(given["caBundle"]) if given.get("caBundle") else None,
    )
