"""The whole gateway configuration of a world: one bundle per namespace, and what they share."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from tierwise.api.model_tier import ModelTier
from tierwise.api.namespace_budget import NamespaceBudget
from tierwise.api.routing_policy import RoutingPolicy
from tierwise.core import claims, routing
from tierwise.core import consumers as access_rules
from tierwise.core.consumers import Access
from tierwise.core.world import Endpoint, Key, World
from tierwise.render.envoy import (
    audit,
    clusters,
    concurrency,
    consumers,
    endpoints,
    errors,
    guard,
    limits,
    listener,
    models,
    picker,
    relay,
    routes,
    scopes,
    secrets,
    tracing,
)
from tierwise.render.envoy.bundle import GatewayConfig, Limits, NamespaceBundle, Resource
from tierwise.render.envoy.fields import (
    BAD_BODY,
    DEFAULT_ROUTES,
    GUARD_LISTENER,
    LISTENER_NAME,
    NO_MODEL,
    RELAY_LISTENER,
    REQUESTED_HEADER,
)
from tierwise.render.envoy.options import DEFAULTS, GatewayOptions
from tierwise.render.envoy.protos import (
    CLUSTER,
    ENDPOINTS,
    EXTENSION,
    LISTENER,
    ROUTES,
    SCOPE,
    InvalidResource,
    content_hash,
    encode,
)

MAX_VIOLATIONS = 5
"""As many are told: one is enough to publish nothing."""


def render(world: World, options: GatewayOptions = DEFAULTS) -> GatewayConfig:
    """Render and check everything. Equal worlds give equal bytes.

    A namespace whose resources do not pass the checks, `audit` last, is left out and named in `GatewayConfig.invalid`;
    the others are not harmed by it.

    Raises:
        InvalidResource: of the shared resources; a defect of Tierwise, no user's doing.
    """
    return Renderer(options)(world)


@dataclass(frozen=True, slots=True)
class _Inputs:
    """All that a namespace's bundle is made of.

    Attributes:
        callers: keys of the scopes of those who may call; None: nobody is asked who calls.
        identities: consumer -> what it is known by.
    """

    namespace: str
    tiers: dict[str, ModelTier]
    policies: dict[str, RoutingPolicy]
    owners: dict[str, str]
    hostnames: tuple[str, ...]
    endpoints: dict[str, tuple[Endpoint, ...]]
    credentials: dict[str, str] = field(repr=False)
    callers: tuple[str, ...] | None
    identities: dict[str, tuple[str, ...]]
    budgets: dict[str, NamespaceBudget] = field(default_factory=dict)
    gateways: int = 1

    def same_as(self, other: "_Inputs") -> bool:
        """Made of the very same objects: comparing them field by field would cost more than rendering."""
        return (
            _identical(self.tiers, other.tiers)
            and _identical(self.policies, other.policies)
            and _identical(self.endpoints, other.endpoints)
            and _enforced(self.budgets) == _enforced(other.budgets)
            and (self.owners, self.hostnames, self.credentials) == (other.owners, other.hostnames, other.credentials)
            and (self.callers, self.identities) == (other.callers, other.identities)
            and self.gateways == other.gateways
        )

    def concurrency(self) -> dict[str, int]:
        """How many requests a gateway may have in flight in each cluster with a limit."""
        return concurrency.of_namespace(
            self.namespace, self.policies.values(), self.tiers, self.endpoints, self.gateways
        )

    def limits(self) -> Limits:
        """What holds for the namespace now."""
        held = limits.of_namespace(self.tiers, self.policies, self.owners, self.callers, self.identities)
        return limits.under(held, self.namespace, self.budgets, self.tiers, self.gateways)


def _enforced(budgets: Mapping[str, NamespaceBudget]) -> list[object]:
    """What of budgets routes depend on: their figures move every few minutes."""
    return [
        (
            name,
            each.status.enforcement,
            (each.spec.exempt, each.spec.ladder, each.spec.failure_policy, each.spec.failure_after),
            (each.spec.unpriced, each.spec.currency),
        )
        for name, each in sorted(budgets.items())
    ]


def _identical(left: Mapping[str, object], right: Mapping[str, object]) -> bool:
    return left.keys() == right.keys() and all(value is right[name] for name, value in left.items())


class Renderer:
    """`render` that keeps each namespace's bundle and makes anew only those whose objects are others than before.

    With 1,000 tiers in 200 namespaces a whole render takes seconds of processor time, a change of one namespace
    milliseconds. The result never depends on what was rendered before.
    """

    def __init__(self, options: GatewayOptions = DEFAULTS) -> None:
        self._options = options
        self._made: dict[str, tuple[_Inputs, NamespaceBundle | InvalidResource]] = {}

    def __call__(self, world: World) -> GatewayConfig:
        """As `render`."""
        settled = claims.settle(world.policies)
        authentication = self._options.authentication
        access = access_rules.settle(world) if authentication is not None else None
        inputs = _inputs(world, settled, access)
        made = {namespace: self._make(each) for namespace, each in inputs.items()}
        self._made = made
        bundles: dict[str, NamespaceBundle] = {}
        invalid: dict[str, str] = {}
        for namespace, (_, outcome) in made.items():
            if isinstance(outcome, InvalidResource):
                invalid[namespace] = str(outcome)
            else:
                bundles[namespace] = outcome
        brought = tracing.collector(self._options.tracing) | {picker.CALLS: picker.calls_cluster()}
        shared = {
            LISTENER: {
                LISTENER_NAME: listener.listener(self._options),
                RELAY_LISTENER: relay.listener(self._options),
                GUARD_LISTENER: guard.listener(self._options),
                **picker.listeners(self._options),
            },
            ROUTES: {DEFAULT_ROUTES: _default_routes(inputs if access is None else {})},
            SCOPE: scopes.default(),
            ENDPOINTS: {endpoints.GATEWAYS: endpoints.gateways(world.gateway_zones)},
        }
        if access is not None and authentication is not None:
            shared[EXTENSION] = {consumers.API_KEYS: consumers.api_keys(access)}
            brought |= consumers.jwks_clusters(authentication, self._options)
        shared[CLUSTER] = brought
        for resources in shared.values():
            for resource in resources.values():
                encode(resource)
        return GatewayConfig(
            shared=shared,
            namespaces=bundles,
            invalid=invalid,
            limits={name: each.limits() for name, each in inputs.items()},
            concurrency={name: most for each in inputs.values() for name, most in each.concurrency().items()},
            until=access.next_change if access is not None else None,
        )

    def _make(self, inputs: _Inputs) -> tuple[_Inputs, NamespaceBundle | InvalidResource]:
        before = self._made.get(inputs.namespace)
        if before is not None and before[0].same_as(inputs):
            return before
        bundle = _bundle(inputs, self._options)
        try:
            check(bundle)
        except InvalidResource as error:
            return inputs, error
        wrong = audit.audit(bundle, inputs.limits())
        if wrong:
            return inputs, InvalidResource("routes", inputs.namespace, "; ".join(wrong[:MAX_VIOLATIONS]))
        return inputs, bundle


def _inputs(world: World, settled: claims.Claims, access: Access | None) -> dict[str, _Inputs]:
    """What each namespace's bundle is made of, by namespace, sorted."""
    found = {
        namespace: _Inputs(namespace, {}, {}, {}, (), {}, {}, *_callers(access, namespace))
        for namespace in sorted({key.namespace for key in (*world.tiers, *world.policies)})
    }
    for key, tier in sorted(world.tiers.items()):
        each = found[key.namespace]
        each.tiers[key.name] = tier
        each.endpoints[key.name] = world.endpoints.get(key, ())
        credential = secrets.credential_value(world, key, tier)
        if credential is not None:
            each.credentials[key.name] = credential
    for key, policy in sorted(world.policies.items()):
        found[key.namespace].policies[key.name] = policy
    for key, budget in world.budgets.items():
        if key.namespace in found:
            found[key.namespace].budgets[key.name] = budget
    for (namespace, model), owner in settled.models.items():
        found[namespace].owners[model] = owner.name
    hostnames: dict[str, list[str]] = {}
    for hostname, owner in settled.hostnames.items():
        hostnames.setdefault(owner.namespace, []).append(hostname)
    return {
        name: replace(each, hostnames=tuple(hostnames.get(name, ())), gateways=_gateways(world, name))
        for name, each in found.items()
    }


def _gateways(world: World, namespace: str) -> int:
    """Gateways that share a rate or a limit: the ready ones or all that operators serve, whichever are more.

    A policy that is new, or whose operators were all replaced, tells of none that is connected while all of them take
    requests. 1 where neither is known.
    """
    counts: dict[str, int] = {}
    for policy in world.policies_in(namespace).values():
        for entry in policy.status.gateways:
            if world.live_replicas is None or entry.name in world.live_replicas:
                counts[entry.name] = max(counts.get(entry.name, 0), entry.connected)
    return max(1, sum(world.gateway_zones.values()), sum(counts.values()))


def _callers(access: Access | None, namespace: str) -> tuple[tuple[str, ...] | None, dict[str, tuple[str, ...]]]:
    """Who may call a namespace's models: the keys of their scopes, and each consumer's identities."""
    if access is None:
        return None, {}
    found = consumers.of_namespace(access, namespace)
    by_key = {consumers.identity(key) for key in access.keys.values() if key.namespace == namespace}
    by_token = {consumers.identity(each) for each, where in access.first.items() if where == namespace}
    every = {each for identities in found.values() for each in identities}
    return scopes.caller_keys(namespace, every, by_key | by_token), found


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


def _bundle(inputs: _Inputs, options: GatewayOptions) -> NamespaceBundle:
    namespace, tiers = inputs.namespace, inputs.tiers
    removed = clusters.foreign_headers(tiers)
    sticky = _sticky_tiers(inputs.policies)
    relieved = routing.guarded_tiers(inputs.policies.values(), tiers)
    found: dict[str, Resource] = {}
    assigned: dict[str, Resource] = {}
    credentials: dict[str, Resource] = {}
    for name, tier in tiers.items():
        key = Key(namespace, name)
        ref = picker.of(tier)
        if ref is not None:
            found |= clusters.picked(key, tier, ref, removed, options)
            replicas = picker.replicas(str(key))
            assigned[replicas] = endpoints.endpoints(replicas, inputs.endpoints[name], clusters.host_of(key))
            continue
        if tier.spec.external is None:
            found[str(key)] = clusters.in_cluster(key, tier, removed, options, sticky=name in sticky)
            assigned[str(key)] = endpoints.endpoints(str(key), inputs.endpoints[name], clusters.host_of(key))
            if name in relieved:
                found |= clusters.guarded(key, tier, removed, options)
                limited = guard.limited(str(key))
                assigned[limited] = endpoints.renamed(assigned[str(key)], limited)
            continue
        credential = inputs.credentials.get(name)
        usable = credential is not None or tier.spec.external.credentials_ref is None
        found |= clusters.external(
            key, tier, tier.spec.external, removed, options, usable=usable, gateways=inputs.gateways
        )
        if credential is not None:
            credentials[str(key)] = secrets.secret(str(key), credential)
    routed: Resource | None = None
    scoped: dict[str, Resource] = {}
    if inputs.owners and inputs.callers != ():  # gateways do not even ask for routes that nobody may take
        routed = routes.configuration(
            namespace,
            inputs.policies,
            inputs.owners,
            tiers,
            inputs.identities,
            inputs.budgets,
            options,
            gateways=inputs.gateways,
        )
        scoped = (
            scopes.of_namespace(namespace, inputs.hostnames)
            if inputs.callers is None
            else scopes.of_callers(namespace, inputs.callers)
        )
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
        if routing_class.affinity is not None
        for ref in routing_class.tiers
    }


def _default_routes(inputs: Mapping[str, _Inputs]) -> Resource:
    """Answers to requests that belong to no namespace."""
    data = [
        entry
        for namespace, each in inputs.items()
        for entry in models.entries(namespace, each.policies, each.owners, qualified=True)
    ]

    def asked(value: str) -> dict[str, object]:
        return {
            "safe_regex": {"regex": routes.ENDPOINTS},
            "headers": [{"name": REQUESTED_HEADER, "string_match": {"exact": value}}],
        }

    return {
        "@type": ROUTES,
        "name": DEFAULT_ROUTES,
        "max_direct_response_body_size_bytes": models.MAX_BYTES,
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
