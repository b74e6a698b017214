"""The whole preview as a value: problems, changes, routes and figures before and after."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from tierwise.core import conditions
from tierwise.core.world import World
from tierwise.preview import diff, metrics, routes, state
from tierwise.preview.diff import Change
from tierwise.preview.estimate import NamespaceEstimate, classes_of, estimate
from tierwise.preview.load import MODELS, Loaded, ObjectId, Problem, in_order
from tierwise.preview.metrics import Metrics
from tierwise.preview.rounds import MAX_ROUNDS, Settled, settle
from tierwise.preview.state import State
from tierwise.render.envoy.options import GatewayOptions
from tierwise.runtime import served
from tierwise.runtime.served import Shown

_TRANSIENT = {"Pending", "Creating", "Starting", "NoGateway", "NoReadyTier"}
"""Not ready yet is no fault of a manifest."""

_OF_PODS = (".ClusterLoadAssignment", ".Runtime")
"""Kinds of resource that follow the Deployments: Pods' addresses, and limits of as many as are ready."""


@dataclass(frozen=True, slots=True)
class Preview:
    """What a change would do.

    Attributes:
        against: what it was compared with, in words. problems: what has to be corrected first. notes: what was assumed
            or left out. objects: of users. children: what the operator makes of them. envoy: resources of gateways.
        routes: namespace -> (lines before, lines after). before, after: figures by namespace.
        metrics: where demand was taken from; empty: unknown. read: what was read, in words.
    """

    against: str
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]
    objects: tuple[Change, ...] = ()
    children: tuple[Change, ...] = ()
    envoy: tuple[Change, ...] = ()
    routes: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = field(default_factory=dict)
    before: Mapping[str, NamespaceEstimate] = field(default_factory=dict)
    after: Mapping[str, NamespaceEstimate] = field(default_factory=dict)
    metrics: str = ""
    read: str = ""

    @property
    def changed(self) -> bool:
        """Whether anything would change."""
        return bool(self.objects or self.children or self.envoy)


def make(
    change: Loaded,
    present: State,
    figures: Metrics,
    now: datetime,
    *,
    against: str,
    options: GatewayOptions,
    prune: bool = False,
    notes: Iterable[str] = (),
) -> Preview:
    """Settle the present state, apply the change, settle again, and compare.

    Args:
        change: what would be applied.
        present: what is there.
        figures: demand and measurements; empty: unknown.
        now: of the comparison.
        against: what `present` is, in words.
        options: of the gateways.
        prune: what the change does not name is deleted.
        notes: to be shown.
    """
    settled = settle(state.store_of(_measured(present, figures)), figures, now)
    base = state.settled(present, settled.store)
    future = state.after(base, change, now, prune=prune)
    later = settle(state.store_of(_measured(future, figures)), figures, now)
    shown, shown_later = (served.show(each.world, options) for each in (settled, later))
    said = [*notes, *state.assumed(future), *metrics.unknown_names(figures, _names(settled) | _names(later))]
    if options.authentication is not None:
        said += [
            f"namespace {name} has no Consumer: nobody may call its policies, and no route is made"
            for name in sorted({key.namespace for key in later.world.policies})
            if not any(key.namespace == name for key in later.world.consumers)
        ]
    if not later.steady:
        said.append(f"the loop had not settled after {MAX_ROUNDS} rounds: figures are those of the last one")
    problems, old = _problems(settled, later, change, shown, shown_later)
    return Preview(
        against=against,
        problems=in_order((*change.problems, *problems)),
        notes=(*said, *old),
        objects=_objects(present, future, change),
        children=_children(settled, later),
        envoy=_envoy(shown, shown_later),
        routes=_routes(shown, shown_later),
        before=estimate(settled, figures, now),
        after=estimate(later, figures, now),
        metrics=figures.source,
        read=f"{len(change.objects)} objects in {change.files} files",
    )


def _measured(given: State, figures: Metrics) -> State:
    """With measured latencies of providers in place of the declared ones."""
    objects = dict(given.objects)
    for (namespace, name), one in figures.tiers.items():
        which: ObjectId = ("ModelTier", namespace, name)
        body = objects.get(which)
        outside = body["spec"].get("external") if body is not None else None
        if body is None or not isinstance(outside, Mapping):
            continue
        known = {"ttftP95": one.ttft_p95, "interTokenP95": one.inter_token_p95}
        latency = {**(outside.get("latency") or {}), **{k: str(v) for k, v in known.items() if v is not None}}
        if latency:
            spec = {**body["spec"], "external": {**outside, "latency": latency}}
            objects[which] = {**body, "spec": spec}
    return State(objects, given.children, given.secrets)


def _names(settled: Settled) -> set[tuple[str, ...]]:
    return {*classes_of(settled), *((key.namespace, key.name) for key in settled.world.tiers)}


def _problems(
    before: Settled, later: Settled, change: Loaded, shown: Shown, shown_later: Shown
) -> tuple[list[Problem], list[str]]:
    """What the operator would say against it; and what it says already of objects that the change leaves alone."""
    already = {(which, reason) for which, reason, _, _ in _said(before.world)}
    found: list[Problem] = []
    old: list[str] = []
    for which, reason, field_name, message in _said(later.world):
        kind, namespace, name = which
        if which in change.objects or (which, reason) not in already:
            where = change.where(which, field_name)
            found.append(Problem(where, f"{kind} {namespace}/{name}", reason, "", message))
        else:
            old.append(f"{kind} {namespace}/{name} is not ready already now ({reason}): {message}")
    for namespace in sorted(shown_later.broken - shown.broken):
        notes = shown_later.notes.get(namespace, ())
        found += [Problem("", f"gateways, namespace {namespace}", "", "", note) for note in notes]
    for (kind, key), error in sorted(later.world.invalid.items(), key=str):
        old.append(f"{kind} {key} in the cluster is not valid and is left out: {error}")
    return found, old


_FIELDS = {
    "ModelNameTaken": "spec.models",
    "HostnameTaken": "spec.hostnames",
    "TierNotFound": "spec.classes",
    "NoClearedTier": "spec.classes",
}


def _said(world: World) -> list[tuple[ObjectId, str, str, str]]:
    """Object, reason, field and message of each condition that says that something is wrong."""
    found: list[tuple[ObjectId, str, str, str]] = []
    for held in (world.tiers, world.policies, world.consumers):
        for key, item in held.items():
            which = (item.KIND.kind, key.namespace, key.name)
            for one in item.status.conditions:
                bad = one.type == conditions.READY and one.status.value != "True" and one.reason not in _TRANSIENT
                bad = bad or (one.type == conditions.SHADOW_INACTIVE and one.status.value == "True")
                if bad:
                    found.append((which, one.reason, _FIELDS.get(one.reason, "spec"), one.message))
    return found


def _objects(present: State, future: State, change: Loaded) -> tuple[Change, ...]:
    found: list[Change] = []
    for which in sorted({*present.objects, *future.objects}):
        kind, namespace, name = which
        old, new = present.objects.get(which), future.objects.get(which)
        made = diff.change(kind, namespace, name, _filled(old), _filled(new), change.where(which))
        if made is not None:
            found.append(made)
    return tuple(found)


def _filled(body: Mapping[str, object] | None) -> dict[str, object] | None:
    """A user's object with the defaults that the API server fills in."""
    if body is None:
        return None
    model = MODELS[str(body["kind"])]
    whole = model.parse({key: value for key, value in body.items() if key != "status"})
    manifest = diff.wanted({**whole.manifest(), "metadata": {**dict(body["metadata"])}})  # type: ignore[call-overload]  # JSON
    return dict(manifest)


def _children(before: Settled, later: Settled) -> tuple[Change, ...]:
    found: list[Change] = []
    for which in sorted({*before.manifests, *later.manifests}, key=lambda one: (one[1], one[2], one[0])):
        old, new = before.manifests.get(which), later.manifests.get(which)
        made = diff.change(*which, diff.wanted(old) if old else None, diff.wanted(new) if new else None)
        if made is not None:
            found.append(made)
    return tuple(found)


def _envoy(before: Shown, later: Shown) -> tuple[Change, ...]:
    found: list[Change] = []
    for owner in sorted({*before.owners, *later.owners}):
        old, new = (_resources(shown, owner) for shown in (before, later))
        for kind, name in sorted({*old, *new}):
            made = diff.change(kind, owner, name, old.get((kind, name)), new.get((kind, name)))
            if made is not None:
                found.append(made)
    return tuple(found)


def _resources(shown: Shown, owner: str) -> dict[tuple[str, str], Mapping[str, object]]:
    owned = shown.owners.get(owner)
    if owned is None:
        return {}
    return {
        (type_url.rpartition(".")[2], name): resource
        for type_url, named in owned.resources.items()
        if not type_url.endswith(_OF_PODS)
        for name, resource in named.items()
    }


def _routes(before: Shown, later: Shown) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    found: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {}
    for owner in sorted({*before.owners, *later.owners} - {""}):
        old, new = (
            tuple(routes.table(shown.owners[owner].resources)) if owner in shown.owners else ()
            for shown in (before, later)
        )
        if old or new:
            found[owner] = (old, new)
    return found
