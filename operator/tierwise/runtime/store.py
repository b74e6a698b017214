"""The one place that holds what was seen; every decision is taken from a snapshot of it.

Watch, relist, the answers to our own writes and the readers of Secrets and signals all put here. Versions decide: what
is older than what is held is ignored, so the order of arrival does not matter, and the watch's echo of a write that was
already put here wakes nobody.
"""

import contextlib
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeVar

from tierwise.adapters import kinds
from tierwise.adapters.cluster import Listing
from tierwise.adapters.kinds import Kind
from tierwise.api.base import InvalidObject
from tierwise.api.consumer import Consumer
from tierwise.api.meta import ApiObject
from tierwise.api.model_tier import ModelTier
from tierwise.api.namespace_budget import NamespaceBudget
from tierwise.api.routing_policy import RoutingPolicy
from tierwise.core import usage
from tierwise.core.ledger import Ledger
from tierwise.core.memory import LoopMemory
from tierwise.core.signals import CounterReading, Signals, TierKey
from tierwise.core.world import Child, Endpoint, GatewayReport, Key, SecretData, World
from tierwise.render import ledger
from tierwise.runtime import last_good, objects
from tierwise.runtime.objects import Manifest

MODELS: dict[Kind, type[ApiObject[Any, Any]]] = {
    kinds.MODEL_TIER: ModelTier,
    kinds.ROUTING_POLICY: RoutingPolicy,
    kinds.NAMESPACE_BUDGET: NamespaceBudget,
    kinds.CONSUMER: Consumer,
}

# Kinds that the gateways' configuration is rendered from.
ROUTES = frozenset({*MODELS, kinds.ENDPOINT_SLICE, kinds.CONFIG_MAP})

ValueT = TypeVar("ValueT")


@dataclass(slots=True)
class _Shelf:
    """All objects of one kind."""

    manifests: dict[Key, Manifest] = field(default_factory=dict)
    parsed: dict[Key, Any] = field(default_factory=dict)
    # Of our own kinds: the last spec that was valid.
    specs: dict[Key, Any] = field(default_factory=dict)
    # Deleted objects and the version of their deletion: a list that was taken before must not bring them back.
    tombstones: dict[Key, int] = field(default_factory=dict)
    # Sorted view of `parsed` for snapshots; None when it has to be made anew.
    view: Mapping[Key, Any] | None = None


class Store:
    """Holds objects, Secrets, signals and reports. Use from one event loop only.

    Args:
        replica: name of this operator replica.
        on_change: called after every change that a decision can depend on, with whether the gateways' configuration can
            depend on it too.
    """

    def __init__(self, replica: str, on_change: Callable[[bool], None] = lambda _: None) -> None:
        self.replica = replica
        self.on_change = on_change
        self._shelves: dict[Kind, _Shelf] = {kind: _Shelf() for kind in kinds.WATCHED}
        self._listed: set[Kind] = set()
        self._invalid: dict[tuple[str, Key], InvalidObject] = {}
        self._secrets: dict[Key, SecretData] = {}
        self._signals: Signals | None = None
        self._usage: list[Mapping[TierKey, CounterReading]] = []
        self._gateways: Mapping[str, GatewayReport] = {}
        self.ledger = Ledger()
        self.memory = LoopMemory()
        self._live_replicas: frozenset[str] | None = None
        self._gateway_zones: Mapping[str, int] = {}
        self._signing_key = b""
        self._genuine: dict[Key, tuple[Manifest, bytes, Mapping[str, str]]] = {}
        self.changes = 0

    @property
    def synced(self) -> bool:
        """Whether every kind has been listed at least once: before that, absence means nothing."""
        return len(self._listed) == len(self._shelves)

    def put(self, kind: Kind, manifest: Mapping[str, Any]) -> bool:
        """Take an object in if it is newer than what is held; whether anything relevant changed."""
        shelf = self._shelves.get(kind)
        if shelf is None:
            return False
        key = objects.key_of(manifest)
        version = objects.version_of(manifest)
        held = shelf.manifests.get(key)
        if held is not None and version and version <= objects.version_of(held):
            return False
        if version and version <= shelf.tombstones.get(key, -1):
            return False
        manifest = objects.stripped(manifest)
        shelf.manifests[key] = manifest
        if held is not None and objects.relevant(kind, held) == objects.relevant(kind, manifest):
            return False
        self._parse(kind, shelf, key, manifest)
        self._changed(kind, shelf)
        return True

    def remove(self, kind: Kind, manifest: Mapping[str, Any]) -> bool:
        """An object was deleted; whether it was held."""
        shelf = self._shelves.get(kind)
        if shelf is None:
            return False
        key = objects.key_of(manifest)
        version = objects.version_of(manifest)
        held = shelf.manifests.get(key)
        if held is not None and version and version < objects.version_of(held):
            return False  # a later object of the same name lives
        shelf.tombstones[key] = max(version, shelf.tombstones.get(key, 0))
        if held is None:
            return False
        self._drop(kind, shelf, key)
        self._changed(kind, shelf)
        return True

    def relist(self, kind: Kind, namespace: str | None, listing: Listing) -> int:
        """Compare with a complete list: take in what is newer, drop what is gone; how many ghosts there were.

        Args:
            kind: of the items.
            namespace: that was listed; None for all.
            listing: the list and the version that it is valid at.
        """
        shelf = self._shelves[kind]
        at = int(listing.resource_version) if listing.resource_version.isdigit() else 0
        present = set()
        for item in listing.items:
            present.add(objects.key_of(item))
            self.put(kind, item)
        ghosts = [
            key
            for key, manifest in shelf.manifests.items()
            if key not in present
            and namespace in {None, key.namespace}
            and (not at or objects.version_of(manifest) <= at)
        ]
        for key in ghosts:
            self._drop(kind, shelf, key)
        shelf.tombstones = {key: version for key, version in shelf.tombstones.items() if version > at}
        if ghosts:
            self._changed(kind, shelf)
        return len(ghosts)

    def listed(self, kind: Kind) -> None:
        """A kind has been listed in all namespaces that are served."""
        if kind not in self._listed:
            self._listed.add(kind)
            self._bump(routes=True)

    def put_secret(self, key: Key, secret: SecretData | None) -> None:
        """A Secret as it is now; None: not found or not readable."""
        if self._secrets.get(key) == secret:
            return
        if secret is None:
            del self._secrets[key]
        else:
            self._secrets[key] = secret
        self._bump(routes=True)

    def put_signals(self, signals: Signals) -> None:
        """What Prometheus said. Usage adds up until a plan has counted it. Wakes nobody: the reader of signals does."""
        if signals.usage:
            self._usage.append(signals.usage)
        self._signals = signals

    def counted(self, world: World, failed: Container[str] = ()) -> None:
        """A plan from this world put its usage in the ledger: it is not shown again.

        Args:
            world: that was planned.
            failed: namespaces that were not: theirs is still to be counted.
        """
        shown = world.signals.usage if world.signals is not None else {}
        latest = {key: reading.until for key, reading in shown.items() if key[0] not in failed}
        kept = (
            {key: one for key, one in part.items() if key not in latest or one.until > latest[key]}
            for part in self._usage
        )
        self._usage = [part for part in kept if part]

    def forget_usage(self) -> None:
        """Usage read by this replica while it was deciding is void: another one decides."""
        self._usage = []
        self._signals = None

    def put_gateways(self, reports: Mapping[str, GatewayReport]) -> bool:
        """What the connected gateways say; whether it changed."""
        if dict(reports) == dict(self._gateways):
            return False
        self._gateways = dict(sorted(reports.items()))
        self._bump(routes=False)
        return True

    @property
    def signing_key(self) -> bytes:
        """What last-good configurations are signed with; empty before it is known."""
        return self._signing_key

    def put_signing_key(self, key: bytes) -> None:
        """What last-good configurations are signed with: others are not shown."""
        if key != self._signing_key:
            self._signing_key = key
            self._changed(kinds.CONFIG_MAP, self._shelves[kinds.CONFIG_MAP])

    def put_live_replicas(self, live: frozenset[str] | None) -> None:
        """Names of the operator replicas that run; None: unknown."""
        if live != self._live_replicas:
            self._live_replicas = live
            self._bump(routes=False)

    def put_gateway_zones(self, zones: Mapping[str, int]) -> None:
        """Ready gateways by zone."""
        if zones != self._gateway_zones:
            self._gateway_zones = zones
            self._bump(routes=True)

    def get(self, kind: Kind, key: Key) -> Manifest | None:
        """An object as it was last seen."""
        return self._shelves[kind].manifests.get(key)

    def manifests(self, kind: Kind) -> Iterable[Manifest]:
        """All objects of a kind."""
        return self._shelves[kind].manifests.values()

    def secret_references(self) -> frozenset[Key]:
        """Secrets that valid tiers and consumers refer to."""
        found: set[Key] = set()
        for key, tier in self._shelves[kinds.MODEL_TIER].parsed.items():
            external = tier.spec.external
            if external is not None and external.credentials_ref is not None:
                found.add(Key(key.namespace, external.credentials_ref.name))
        for key, consumer in self._shelves[kinds.CONSUMER].parsed.items():
            found.update(Key(key.namespace, one.name) for one in consumer.spec.api_keys or ())
        return frozenset(found)

    def secrets(self) -> Mapping[Key, SecretData]:
        """Secrets that are held."""
        return self._secrets

    def drop_secrets(self, keep: frozenset[Key]) -> None:
        """Forget Secrets that nobody refers to any more."""
        for key in [key for key in self._secrets if key not in keep]:
            del self._secrets[key]
            self._bump(routes=True)

    def snapshot(self, now: datetime) -> World:
        """Everything as of now, immutable and sorted."""
        return World(
            now=now,
            replica=self.replica,
            tiers=self._view(kinds.MODEL_TIER, ModelTier),
            policies=self._view(kinds.ROUTING_POLICY, RoutingPolicy),
            budgets=self._view(kinds.NAMESPACE_BUDGET, NamespaceBudget),
            consumers=self._view(kinds.CONSUMER, Consumer),
            invalid=dict(sorted(self._invalid.items())),
            workloads=self._by_tier(kinds.DEPLOYMENT, objects.workload),
            services=self._by_tier(kinds.SERVICE, objects.child),
            autoscalers=self._by_tier(kinds.AUTOSCALER, objects.child),
            disruption_budgets=self._by_tier(kinds.DISRUPTION_BUDGET, objects.child),
            endpoints=self._endpoints(),
            secrets=dict(sorted(self._secrets.items())),
            last_good=self._last_good(),
            books=self._books(),
            signals=self._signals_with_usage(),
            ledger=self.ledger,
            gateways=self._gateways,
            memory=self.memory,
            invalid_bodies={
                (kind.name, key): self._shelves[kind].manifests[key]
                for kind in MODELS
                for (name, key) in sorted(self._invalid)
                if name == kind.name
            },
            live_replicas=self._live_replicas,
            gateway_zones=self._gateway_zones,
        )

    def _signals_with_usage(self) -> Signals | None:
        if self._signals is None:
            return None
        total: dict[TierKey, CounterReading] = {}
        for part in self._usage:
            for key, reading in part.items():
                total[key] = usage.add(total[key], reading) if key in total else reading
        signals = self._signals
        return Signals(
            time=signals.time,
            tiers=signals.tiers,
            classes=signals.classes,
            usage=dict(sorted(total.items())),
            window_seconds=signals.window_seconds,
            gateways_up=signals.gateways_up,
            error=signals.error,
        )

    def _parse(self, kind: Kind, shelf: _Shelf, key: Key, manifest: Manifest) -> None:
        model = MODELS.get(kind)
        if model is None:
            shelf.parsed[key] = manifest
            return
        try:
            shelf.parsed[key] = model.parse(manifest)
        except InvalidObject as error:
            self._invalid[kind.name, key] = error
            last = shelf.specs.get(key)
            if last is not None:
                # What was valid last stays in effect, with today's metadata and status; that it is not the present
                # spec shows in `invalid`.
                with contextlib.suppress(InvalidObject):
                    shelf.parsed[key] = model.parse({**manifest, "spec": last})
        else:
            shelf.specs[key] = manifest.get("spec")
            self._invalid.pop((kind.name, key), None)

    def _drop(self, kind: Kind, shelf: _Shelf, key: Key) -> None:
        shelf.manifests.pop(key, None)
        shelf.parsed.pop(key, None)
        shelf.specs.pop(key, None)
        self._invalid.pop((kind.name, key), None)

    def _changed(self, kind: Kind, shelf: _Shelf) -> None:
        shelf.view = None
        self._bump(routes=kind in ROUTES)

    def _bump(self, *, routes: bool) -> None:
        self.changes += 1
        self.on_change(routes)

    def _view(self, kind: Kind, _: type[ValueT]) -> Mapping[Key, ValueT]:
        shelf = self._shelves[kind]
        if shelf.view is None:
            shelf.view = dict(sorted(shelf.parsed.items()))
        return shelf.view

    def _by_tier(self, kind: Kind, make: Callable[[Manifest], ValueT]) -> Mapping[Key, ValueT]:
        shelf = self._shelves[kind]
        if shelf.view is None:
            found = {objects.tier_key(manifest): make(manifest) for _, manifest in sorted(shelf.parsed.items())}
            shelf.view = dict(sorted(found.items()))
        return shelf.view

    def _endpoints(self) -> Mapping[Key, tuple[Endpoint, ...]]:
        shelf = self._shelves[kinds.ENDPOINT_SLICE]
        if shelf.view is None:
            slices: dict[Key, list[Manifest]] = {}
            for _, manifest in sorted(shelf.parsed.items()):
                slices.setdefault(objects.tier_key(manifest), []).append(manifest)
            shelf.view = {key: objects.endpoints(found) for key, found in sorted(slices.items())}
        return shelf.view

    def _last_good(self) -> Mapping[str, Child]:
        shelf = self._shelves[kinds.CONFIG_MAP]
        if shelf.view is None:
            shelf.view = {
                key: objects.kept(manifest)
                for key, manifest in sorted(shelf.parsed.items())
                if key.name == objects.LAST_GOOD and last_good.genuine(manifest, self._signing_key)
            }
        return {key.namespace: one for key, one in shelf.view.items()}

    def _books(self) -> Mapping[Key, str]:
        """Accounts that were kept whole. A change of them wakes nobody, so each is looked at by its version."""
        found: dict[Key, str] = {}
        for key, manifest in sorted(self._shelves[kinds.CONFIG_MAP].manifests.items()):
            if key.name != objects.LEDGER:
                continue
            known = self._genuine.get(key)
            if known is None or known[0] is not manifest or known[1] != self._signing_key:
                genuine = last_good.genuine(manifest, self._signing_key)
                known = self._genuine[key] = (manifest, self._signing_key, ledger.entries(manifest) if genuine else {})
            found.update({Key(key.namespace, name): text for name, text in known[2].items()})
        for key in self._genuine.keys() - self._shelves[kinds.CONFIG_MAP].manifests.keys():
            del self._genuine[key]
        return found
