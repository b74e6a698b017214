"""The whole gateway configuration of a world: one bundle per namespace, and what they share."""

from collections.abc import Mapping

from tierwise.api.routing_policy import RoutingPolicy
from tierwise.core import claims
from tierwise.core.world import Key, World
from tierwise.render.envoy import clusters, endpoints, errors, listener, models, routes, scopes, secrets
from tierwise.render.envoy.bundle import GatewayConfig, NamespaceBundle, Resource
from tierwise.render.envoy.fields import BAD_BODY, DEFAULT_ROUTES, LISTENER_NAME, NO_MODEL, REQUESTED_HEADER
from tierwise.render.envoy.options import DEFAULTS, GatewayOptions
from tierwise.render.envoy.protos import LISTENER, ROUTES, SCOPE, InvalidResource, content_hash, encode


def render(world: World, options: GatewayOptions = DEFAULTS) -> GatewayConfig:
    """Render and check everything. Equal worlds give equal bytes.

    A namespace whose resources do not pass the check is left out and named in `GatewayConfig.invalid`; the others are
    not harmed by it.

    Raises:
        InvalidResource: of the shared resources; a defect of Tierwise, no user's doing.
    """
    settled = claims.settle(world.policies)
    owned = _models_by_namespace(settled)
    names = sorted({key.namespace for key in (*world.tiers, *world.policies)})
    bundles: dict[str, NamespaceBundle] = {}
    invalid: dict[str, str] = {}
    for namespace in names:
        hostnames = [host for host, owner in settled.hostnames.items() if owner.namespace == namespace]
        bundle = _bundle(world, namespace, owned.get(namespace, {}), hostnames, options)
        try:
            check(bundle)
        except InvalidResource as error:
            invalid[namespace] = str(error)
        else:
            bundles[namespace] = bundle
    shared = {
        LISTENER: {LISTENER_NAME: listener.listener(options)},
        ROUTES: {DEFAULT_ROUTES: _default_routes(world, owned)},
        SCOPE: scopes.default(),
    }
    for resources in shared.values():
        for resource in resources.values():
            encode(resource)
    return GatewayConfig(shared=shared, namespaces=bundles, invalid=invalid)


def check(bundle: NamespaceBundle) -> None:
    """Hold every resource against Envoy's API.

    Raises:
        InvalidResource: the first that does not fit.
    """
    for resources in (bundle.clusters, bundle.endpoints, bundle.secrets, bundle.scopes):
        for resource in resources.values():
            encode(resource)
    if bundle.routes is not None:
        encode(bundle.routes)


def bundle_hash(
    found: Mapping[str, Resource], routes_found: Resource | None, scopes_found: Mapping[str, Resource]
) -> str:
    """Content hash of what makes a configuration new: not endpoints and secrets, which move by themselves."""
    return content_hash(dict(found), routes_found, dict(scopes_found))


def _models_by_namespace(settled: claims.Claims) -> dict[str, dict[str, str]]:
    owned: dict[str, dict[str, str]] = {}
    for (namespace, model), owner in settled.models.items():
        owned.setdefault(namespace, {})[model] = owner.name
    return owned


def _bundle(
    world: World, namespace: str, owners: Mapping[str, str], hostnames: list[str], options: GatewayOptions
) -> NamespaceBundle:
    tiers = world.tiers_in(namespace)
    policies = world.policies_in(namespace)
    removed = clusters.foreign_headers(tiers)
    sticky = _sticky_tiers(policies)
    found: dict[str, Resource] = {}
    assigned: dict[str, Resource] = {}
    credentials: dict[str, Resource] = {}
    for name, tier in tiers.items():
        key = Key(namespace, name)
        if tier.spec.external is None:
            found[str(key)] = clusters.in_cluster(key, tier, removed, options, sticky=name in sticky)
            assigned[str(key)] = endpoints.endpoints(str(key), world.endpoints.get(key, ()), clusters.host_of(key))
        else:
            credential = secrets.credential_value(world, key, tier)
            needed = tier.spec.external.credentials_ref is not None
            usable = credential is not None or not needed
            found[str(key)] = clusters.external(key, tier, tier.spec.external, removed, options, usable=usable)
            if credential is not None:
                credentials[str(key)] = secrets.secret(str(key), credential)
    routed = routes.configuration(namespace, policies, owners, tiers, options) if owners else None
    scoped = scopes.of_namespace(namespace, hostnames) if routed is not None else {}
    return NamespaceBundle(
        namespace=namespace,
        clusters=found,
        endpoints=assigned,
        secrets=credentials,
        routes=routed,
        scopes=scoped,
        hash=bundle_hash(found, routed, scoped),
    )


def _sticky_tiers(policies: Mapping[str, RoutingPolicy]) -> set[str]:
    return {
        ref.name
        for policy in policies.values()
        for routing_class in policy.spec.classes
        if routing_class.affinity is not None and routing_class.affinity.header is not None
        for ref in routing_class.tiers
    }


def _default_routes(world: World, owned: Mapping[str, Mapping[str, str]]) -> Resource:
    """Answers to requests that belong to no namespace."""
    data = [
        entry
        for namespace, owners in sorted(owned.items())
        for entry in models.entries(namespace, world.policies_in(namespace), owners, qualified=True)
    ]

    def asked(value: str) -> dict[str, object]:
        return {
            "safe_regex": {"regex": routes.ENDPOINTS},
            "headers": [{"name": REQUESTED_HEADER, "string_match": {"exact": value}}],
        }

    return {
        "@type": ROUTES,
        "name": DEFAULT_ROUTES,
        "virtual_hosts": [
            {
                "name": "default",
                "domains": ["*"],
                "routes": [
                    {"match": models.MATCH, **models.answer(data)},
                    {"match": asked(BAD_BODY), **errors.bad_body()},
                    {"match": asked(NO_MODEL), **errors.missing_model()},
                    {"match": {"prefix": "/"}, **errors.unknown_endpoint()},
                ],
            }
        ],
    }
