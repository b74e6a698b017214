"""What is served: for each namespace the newest configuration, or the last good one while gateways refuse the newest.

No I/O: `server` calls it, and tests hold it against a model of Envoy.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from tierwise.render.envoy import audit, endpoints, limits
from tierwise.render.envoy.bundle import NO_LIMITS, GatewayConfig, Limits, NamespaceBundle, Resource
from tierwise.render.envoy.protos import CLUSTER, ENDPOINTS, ROUTES, SCOPE, SECRET, Encoded, encode

SHARED = ""
"""Owner of what belongs to no namespace: the listener and the default routes. No namespace has this name."""


@dataclass(frozen=True, slots=True)
class Served:
    """What gateways shall have of one namespace.

    Attributes:
        owner: the namespace, or `SHARED`.
        hash: the bundle's.
        resources: type URL -> name -> resource.
    """

    owner: str
    hash: str
    resources: Mapping[str, Mapping[str, Encoded]]

    def of(self, type_url: str) -> Mapping[str, Encoded]:
        """Resources of one type, by name."""
        return self.resources.get(type_url, {})


@dataclass(frozen=True, slots=True)
class Refusal:
    """A gateway would not take a bundle.

    Attributes:
        hash: of the bundle.
        message: Envoy's own words.
    """

    hash: str
    message: str


@dataclass(slots=True)
class Catalog:
    """All that is served, and why it is that.

    Attributes:
        wanted: the newest bundle of each namespace.
        good: the last bundle of each namespace that all gateways acknowledged: this replica's own, or, while none is
            connected here, those of the other replicas, as they were kept.
        heard: namespaces whose `good` this replica's own gateways acknowledged.
        refused: namespace -> the refusal of its newest bundle.
        invalid: namespace -> why its newest render is no configuration at all.
        limits: namespace -> which tiers may see what now; the last good configuration keeps to it too.
        unsafe: namespace -> why not even its last good configuration can be served.
        served: owner -> what gateways shall have.
        encoded: namespace -> the newest bundle and what it encodes to.
    """

    wanted: dict[str, NamespaceBundle] = field(default_factory=dict)
    good: dict[str, NamespaceBundle] = field(default_factory=dict)
    heard: set[str] = field(default_factory=set)
    refused: dict[str, Refusal] = field(default_factory=dict)
    invalid: dict[str, str] = field(default_factory=dict)
    limits: dict[str, Limits] = field(default_factory=dict)
    unsafe: dict[str, str] = field(default_factory=dict)
    served: dict[str, Served] = field(default_factory=dict)
    encoded: dict[str, tuple[NamespaceBundle, Served]] = field(default_factory=dict)

    def publish(self, prepared: "Prepared") -> set[str]:
        """Take a new configuration; the owners whose resources changed."""
        config = prepared.config
        self.invalid = dict(config.invalid)
        self.wanted = dict(config.namespaces)
        self.limits = dict(config.limits)
        self.encoded = dict(prepared.encoded)
        for namespace, refusal in list(self.refused.items()):
            bundle = self.wanted.get(namespace)
            if bundle is None or bundle.hash != refusal.hash:
                del self.refused[namespace]  # another render: it gets its chance
        for namespace in [*self.good]:
            if namespace not in self.wanted and namespace not in self.invalid:
                del self.good[namespace]
        self.heard &= self.good.keys()
        for namespace, bundle in prepared.good.items():
            if namespace not in self.heard:
                self.good[namespace] = bundle
        changed = self._serve(Served(SHARED, "", prepared.shared))
        for namespace in {*self.wanted, *self.invalid, *self.served} - {SHARED}:
            changed |= self._settle(namespace)
        return changed

    def refuse(self, namespace: str, refused_hash: str, message: str) -> set[str]:
        """A gateway refused this bundle; the owners whose resources changed by going back to the last good one."""
        bundle = self.wanted.get(namespace)
        if bundle is None or bundle.hash != refused_hash:
            return set()  # about something that is no longer wanted
        self.refused[namespace] = Refusal(refused_hash, message)
        return self._settle(namespace)

    def acknowledge(self, namespace: str) -> None:
        """All gateways have what is served: remember it as good, when it is the newest."""
        bundle, served = self.wanted.get(namespace), self.served.get(namespace)
        if bundle is not None and served is not None and served.hash == bundle.hash and namespace not in self.refused:
            self.good[namespace] = bundle
            self.heard.add(namespace)

    def deserted(self) -> None:
        """No gateway is connected here any more: what the others' gateways acknowledge from now on is newer."""
        self.heard.clear()

    def message(self, namespace: str) -> str:
        """Why the newest configuration is not served; empty when it is."""
        refusal = self.refused.get(namespace)
        return self.unsafe.get(namespace) or (
            refusal.message if refusal is not None else self.invalid.get(namespace, "")
        )

    def _settle(self, namespace: str) -> set[str]:
        bundle = self._choose(namespace)
        if bundle is None:
            return {namespace} if self.served.pop(namespace, None) is not None else set()
        newest = self.encoded.get(namespace)
        return self._serve(newest[1] if newest is not None and newest[0] is bundle else encode_bundle(bundle))

    def _serve(self, served: Served) -> set[str]:
        before = self.served.get(served.owner)
        if before is served or before == served:
            return set()
        self.served[served.owner] = served
        return {served.owner}

    def _choose(self, namespace: str) -> NamespaceBundle | None:
        self.unsafe.pop(namespace, None)
        newest, good = self.wanted.get(namespace), self.good.get(namespace)
        doubtful = namespace in self.refused or namespace in self.invalid
        if not doubtful or good is None:
            # Without anything better: gateways that took the newest keep it, the others keep what they had.
            return newest
        taken = {name for other, bundle in self.wanted.items() if other != namespace for name in bundle.scopes}
        now = self.limits.get(namespace, NO_LIMITS)
        try:
            chosen = brought_up_to_date(good, newest, taken, now)
        except audit.UncheckableError as error:
            wrong: tuple[str, ...] = (f"{audit.PREFIX}{error}",)
        else:
            wrong = audit.audit(chosen, now)
            if not wrong:
                return chosen
        self.unsafe[namespace] = wrong[0]
        return None  # rather no answer than one from a tier that may not see the request


@dataclass(frozen=True, slots=True)
class Prepared:
    """A configuration, encoded; made outside of the event loop.

    Attributes:
        config: as rendered.
        shared: type URL -> name -> resource of no namespace.
        encoded: namespace -> its bundle and what it encodes to.
        good: last good bundles that were kept, by namespace.
    """

    config: GatewayConfig
    shared: Mapping[str, Mapping[str, Encoded]]
    encoded: Mapping[str, tuple[NamespaceBundle, Served]]
    good: Mapping[str, NamespaceBundle]


def prepare(
    config: GatewayConfig,
    good: Mapping[str, NamespaceBundle],
    before: Mapping[str, tuple[NamespaceBundle, Served]] | None = None,
) -> Prepared:
    """Encode everything that is not the very bundle that `before` holds.

    Raises:
        InvalidResource: what `render` should have caught.
    """
    encoded = {}
    for namespace, bundle in config.namespaces.items():
        known = before.get(namespace) if before is not None else None
        encoded[namespace] = known if known is not None and known[0] is bundle else (bundle, encode_bundle(bundle))
    shared = {url: encode_all(found.values()) for url, found in config.shared.items()}
    return Prepared(config, shared, encoded, good)


def encode_bundle(bundle: NamespaceBundle) -> Served:
    """A bundle as what gateways get."""
    return Served(
        bundle.namespace,
        bundle.hash,
        {
            CLUSTER: encode_all(bundle.clusters.values()),
            ENDPOINTS: encode_all(bundle.endpoints.values()),
            SECRET: encode_all(bundle.secrets.values()),
            SCOPE: encode_all(bundle.scopes.values()),
            ROUTES: encode_all([bundle.routes] if bundle.routes is not None else []),
        },
    )


def encode_all(found: Iterable[Resource]) -> dict[str, Encoded]:
    """Encoded resources by name."""
    return {each.name: each for each in map(encode, found)}


def brought_up_to_date(
    good: NamespaceBundle, newest: NamespaceBundle | None, taken: set[str], now: Limits
) -> NamespaceBundle:
    """The last good bundle with today's addresses, credentials and limits, without scopes that are not its own now."""
    found: dict[str, Resource] = {}
    for name, cluster in good.clusters.items():
        if cluster.get("type") != "EDS":
            continue
        current = _endpoints_of(newest, name) if newest is not None else None
        found[name] = current or good.endpoints.get(name) or endpoints.endpoints(name, (), name)
    credentials = newest.secrets if newest is not None else good.secrets
    return replace(
        good,
        endpoints=found,
        secrets={name: secret for name, secret in credentials.items() if name in good.clusters},
        routes=limits.hold(good.routes, now),
        scopes={
            name: scope
            for name, scope in good.scopes.items()
            if name not in taken and (now.callers is None or name in now.callers)
        },
    )


def _endpoints_of(bundle: NamespaceBundle, cluster: str) -> Resource | None:
    """Today's replicas of a cluster; where the newest bundle has no such way to the tier, those of the tier itself."""
    tier = bundle.endpoints.get(cluster.partition("@")[0])
    return bundle.endpoints.get(cluster) or (endpoints.renamed(tier, cluster) if tier is not None else None)
