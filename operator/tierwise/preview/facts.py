"""Where `tierwise explain` gets its objects: the API server, or files that hold them with their statuses."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tierwise.adapters import cluster as adapter
from tierwise.adapters import kinds
from tierwise.adapters.cluster import ClusterError, NotFoundError
from tierwise.api.base import InvalidObject
from tierwise.api.model_tier import ModelTier
from tierwise.api.namespace_budget import NamespaceBudget
from tierwise.api.routing_policy import RoutingPolicy
from tierwise.errors import TierwiseError
from tierwise.preview import load

MAX_EVENTS = 200
"""Events that are looked through."""


class NoSuchPolicyError(TierwiseError):
    """The policy does not exist; the message names those that do."""


@dataclass(frozen=True, slots=True, order=True)
class Told:
    """One event of the operator's. `time`: RFC 3339; `about`: kind/name."""

    time: str
    reason: str
    about: str
    note: str


@dataclass(slots=True)
class Facts:
    """One policy and what is around it.

    Attributes:
        policy: itself. tiers, budgets: of its namespace, by name. events: about it and its tiers, newest first; None
            when they could not be read. source: where all of it is from. notes: what could not be read.
    """

    policy: RoutingPolicy
    tiers: Mapping[str, ModelTier] = field(default_factory=dict)
    budgets: Mapping[str, NamespaceBudget] = field(default_factory=dict)
    events: tuple[Told, ...] | None = None
    source: str = ""
    notes: tuple[str, ...] = ()


def missing(name: str, namespace: str, found: Iterable[tuple[str, str]], source: str) -> NoSuchPolicyError:
    """The error for a policy that is not there, with what may have been meant."""
    everything = sorted(set(found))
    here = [each for where, each in everything if where == namespace]
    elsewhere = [where for where, each in everything if each == name]
    text = f"RoutingPolicy {namespace}/{name} is not in {source}"
    close = difflib.get_close_matches(name, here, n=3, cutoff=0.5)
    if elsewhere:
        return NoSuchPolicyError(f"{text}; namespace {' and '.join(elsewhere)} has one of that name: give -n")
    if close:
        return NoSuchPolicyError(f"{text}; did you mean {' or '.join(close)}?")
    if here:
        return NoSuchPolicyError(f"{text}; namespace {namespace} has {', '.join(here)}")
    others = ", ".join(f"{where}/{each}" for where, each in everything[:10])
    return NoSuchPolicyError(f"{text}; " + (f"there are {others}" if others else "there is no RoutingPolicy at all"))


async def from_cluster(name: str, namespace: str | None, kubeconfig: Path | None, context: str | None) -> Facts:
    """Read the API server.

    Raises:
        NoSuchPolicyError: with the names of others. ClusterError: it can not be reached or read.
    """
    configuration = await adapter.configure(kubeconfig, context)
    namespace = namespace or adapter.namespace_of(kubeconfig, context)
    source = f"the cluster at {configuration.host}"
    async with adapter.connect(configuration) as cluster:
        try:
            body = await cluster.get(kinds.ROUTING_POLICY, namespace, name)
        except NotFoundError as error:
            raise missing(name, namespace, await _others(cluster), source) from error
        notes: list[str] = []
        tiers = await _named(cluster, kinds.MODEL_TIER, ModelTier, namespace, notes)
        budgets = await _named(cluster, kinds.NAMESPACE_BUDGET, NamespaceBudget, namespace, notes)
        try:
            events = told((await cluster.list(kinds.EVENT, namespace=namespace)).items, name)
        except ClusterError as error:
            events = None
            notes.append(f"events can not be read: {error}")
    return Facts(RoutingPolicy.parse(body), tiers, budgets, events, source, tuple(notes))


async def _others(cluster: adapter.Cluster) -> list[tuple[str, str]]:
    try:
        found = (await cluster.list(kinds.ROUTING_POLICY)).items
    except ClusterError:
        return []
    return [(str(item["metadata"]["namespace"]), str(item["metadata"]["name"])) for item in found]


async def _named(
    cluster: adapter.Cluster,
    kind: kinds.Kind,
    model: type[ModelTier] | type[NamespaceBudget],
    namespace: str,
    notes: list[str],
) -> dict[str, Any]:
    try:
        items = (await cluster.list(kind, namespace=namespace)).items
    except ClusterError as error:
        notes.append(f"{kind.plural} can not be read: {error}")
        return {}
    found: dict[str, Any] = {}
    for item in items:
        try:
            found[str(item["metadata"]["name"])] = model.parse(item)
        except InvalidObject as error:
            notes.append(str(error))
    return found


def from_files(paths: Iterable[str], name: str, namespace: str) -> Facts:
    """Read manifests with statuses, such as `kubectl get modeltiers,routingpolicies -o yaml` prints.

    Raises:
        NoSuchPolicyError: with the names of others. SourceError: a path can not be read.
    """
    paths = tuple(paths)
    loaded = load.read(paths, namespace, keep_status=True)
    source = " and ".join(paths)
    body = loaded.objects.get(("RoutingPolicy", namespace, name))
    if body is None:
        known = [(where, each) for kind, where, each in loaded.objects if kind == "RoutingPolicy"]
        raise missing(name, namespace, known, source)

    def of(kind: str) -> dict[str, Any]:
        model = load.MODELS[kind]
        return {
            key[2]: model.parse(each) for key, each in loaded.objects.items() if key[0] == kind and key[1] == namespace
        }

    notes = tuple(map(str, load.in_order(loaded.problems)))
    return Facts(RoutingPolicy.parse(body), of("ModelTier"), of("NamespaceBudget"), None, source, notes)


def told(items: Iterable[Mapping[str, Any]], policy: str) -> tuple[Told, ...]:
    """Events about a policy and about any tier, newest first."""
    found: list[Told] = []
    for item in items:
        regarding = item.get("regarding") or item.get("involvedObject") or {}
        kind, name = str(regarding.get("kind", "")), str(regarding.get("name", ""))
        if not (kind == "RoutingPolicy" and name == policy) and kind != "ModelTier":
            continue
        time = item.get("eventTime") or item.get("deprecatedLastTimestamp") or item.get("lastTimestamp")
        time = time or (item.get("metadata") or {}).get("creationTimestamp") or ""
        note = str(item.get("note") or item.get("message") or "")
        found.append(Told(str(time), str(item.get("reason", "")), f"{kind} {name}", note))
    return tuple(sorted(found, reverse=True)[:MAX_EVENTS])
