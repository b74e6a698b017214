"""The present and the future state as two stores: what is there, and what would be there after the change."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from tierwise.adapters import kinds
from tierwise.api.meta import API_VERSION
from tierwise.core.consumers import MAX_KEY_LENGTH
from tierwise.core.world import GatewayReport, Key, SecretData
from tierwise.preview.load import MODELS, Loaded, Manifest, ObjectId
from tierwise.render import labels
from tierwise.runtime.store import Store

REPLICA = "preview"
CHILDREN = (kinds.DEPLOYMENT, kinds.SERVICE, kinds.AUTOSCALER, kinds.DISRUPTION_BUDGET)


@dataclass(slots=True)
class State:
    """Objects of one moment.

    Attributes:
        objects: ours, as manifests. children: Deployments and so on that exist, as the API server shows them.
        secrets: names of Secrets that are known to exist -> their keys; None: nobody looked, all are assumed.
    """

    objects: dict[ObjectId, Manifest] = field(default_factory=dict)
    children: list[Manifest] = field(default_factory=list)
    secrets: Mapping[tuple[str, str], frozenset[str]] = field(default_factory=dict)

    @property
    def namespaces(self) -> set[str]:
        """With any object of ours."""
        return {namespace for _, namespace, _ in self.objects}


def from_loaded(loaded: Loaded, now: datetime) -> State:
    """What manifests describe; nothing runs yet."""
    objects = {which: _stamped(body, now, f"file-{which}") for which, body in loaded.objects.items()}
    return State(objects, [], dict(loaded.secrets))


def after(before: State, change: Loaded, now: datetime, *, prune: bool) -> State:
    """The state once the change is applied: its objects replace those of the same name.

    Args:
        before: the present state.
        change: what would be applied.
        now: creation time of what is new.
        prune: objects that the change does not name are deleted, in the namespaces that it names (a GitOps
            controller's way); else they stay (`kubectl apply`'s).
    """
    named = {namespace for _, namespace, _ in change.objects}
    kept = {
        which: body
        for which, body in before.objects.items()
        if which in change.objects or not (prune and which[1] in named)
    }
    if prune and not change.objects:
        kept = {}
    for which, body in change.objects.items():
        old = before.objects.get(which)
        if old is None:
            kept[which] = _stamped(body, now, f"new-{which}")
            continue
        metadata = {**old["metadata"]}
        for name in ("labels", "annotations"):
            if name in body["metadata"]:
                metadata[name] = body["metadata"][name]
        if old.get("spec") != body.get("spec"):
            metadata["generation"] = int(metadata.get("generation") or 1) + 1
        kept[which] = {**body, "metadata": metadata, **({"status": old["status"]} if "status" in old else {})}
    gone = set(before.objects) - set(kept)
    children = [child for child in before.children if ("ModelTier", *_owner(child)) not in gone]
    return State(kept, children, {**before.secrets, **change.secrets})


def _owner(child: Mapping[str, Any]) -> tuple[str, str]:
    metadata = child["metadata"]
    for reference in metadata.get("ownerReferences") or ():
        if reference.get("controller") and reference.get("kind") == "ModelTier":
            return str(metadata.get("namespace", "")), str(reference.get("name", ""))
    return str(metadata.get("namespace", "")), ""


def _stamped(body: Manifest, moment: datetime, seed: str) -> Manifest:
    """With what the API server adds: a uid and a time of creation."""
    uid = hashlib.sha256(seed.encode()).hexdigest()[:32]
    made = {"uid": uid, "generation": 1, "creationTimestamp": moment.strftime("%Y-%m-%dT%H:%M:%SZ")}
    return {**body, "metadata": {**made, **body["metadata"]}}


def settled(state: State, store: Store) -> State:
    """The same objects with the statuses and children that they have once nothing moves any more."""
    objects = {
        which: dict(store.get(kinds.kind_of(API_VERSION, which[0]), Key(*which[1:])) or body)
        for which, body in state.objects.items()
    }
    children = [manifest for kind in CHILDREN for manifest in store.manifests(kind)]
    return State(objects, children, state.secrets)


def unstamped(manifest: Manifest) -> Manifest:
    """A child without the hash of what it was rendered from: it will be rendered anew, to be compared as rendered."""
    annotations = {
        k: v for k, v in (manifest["metadata"].get("annotations") or {}).items() if k != labels.RENDERED_ANNOTATION
    }
    return {**manifest, "metadata": {**manifest["metadata"], "annotations": annotations}}


def store_of(state: State) -> Store:
    """A store that holds a state; gateways are connected and have acknowledged all; what Secrets hold is assumed.

    The operator's own store: what it makes of these objects is what it will make of them in a cluster.
    """
    store = Store(REPLICA)
    children = map(unstamped, state.children)
    for version, manifest in enumerate((*state.objects.values(), *children), start=1):
        metadata = {**manifest["metadata"], "resourceVersion": str(version)}
        store.put(kinds.kind_of(str(manifest["apiVersion"]), str(manifest["kind"])), {**manifest, "metadata": metadata})
    for key, names in _wanted(state).items():
        store.put_secret(key, SecretData({name: _stand_in(key, name) for name in sorted(names)}))
    reports = {namespace: GatewayReport("preview", "preview", 1, 1, 0, "") for namespace in state.namespaces}
    store.put_gateways(reports)
    store.put_live_replicas(frozenset({REPLICA}))
    return store


def _stand_in(key: Key, name: str) -> bytes:
    """A value that no two Secrets share and that can not be mistaken for a real one."""
    return f"assumed-{hashlib.sha256(f'{key}/{name}'.encode()).hexdigest()}"[:MAX_KEY_LENGTH].encode()


def _wanted(state: State) -> dict[Key, set[str]]:
    found: dict[Key, set[str]] = {}
    for key, name, _ in references(state):
        found.setdefault(key, set()).add(name)
    return found


def references(state: State) -> list[tuple[Key, str, ObjectId]]:
    """Secret, key in it, and the object that refers to it."""
    found: list[tuple[Key, str, ObjectId]] = []
    for which, body in sorted(state.objects.items()):
        kind, namespace, name = which
        model = MODELS[kind].parse(body)
        if kind == "ModelTier" and model.spec.external is not None and model.spec.external.credentials_ref is not None:
            ref = model.spec.external.credentials_ref
            found.append((Key(namespace, ref.name), ref.key, (kind, namespace, name)))
        if kind == "Consumer":
            found += [(Key(namespace, one.name), one.key, which) for one in model.spec.api_keys or ()]
    return found


def assumed(state: State) -> list[str]:
    """Credentials that are not among the manifests and are taken to be there, in words."""
    return [
        f"Secret {key} key {name} is not among the manifests: assumed to exist ({kind} {owner})"
        for key, name, (kind, _, owner) in references(state)
        if name not in state.secrets.get((key.namespace, key.name), frozenset())
    ]


def earlier(moment: datetime) -> datetime:
    """When what is there already was made, where nothing says so: before anything new."""
    return moment - timedelta(days=1)
