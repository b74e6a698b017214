"""From what the API server sends to what a World holds."""

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from tierwise.adapters import kinds
from tierwise.adapters.kinds import Kind
from tierwise.core.world import Child, Endpoint, Key, Workload
from tierwise.render import labels, ledger
from tierwise.render.envoy import last_good

Manifest: TypeAlias = dict[str, Any]

MANAGED_BY = "app.kubernetes.io/managed-by"
MANAGER = labels.MANAGED_BY
SELECTOR = f"{MANAGED_BY}={MANAGER}"
LAST_GOOD = last_good.NAME
LEDGER = ledger.NAME


def key_of(manifest: Mapping[str, Any]) -> Key:
    """Namespace and name."""
    metadata = manifest.get("metadata") or {}
    return Key(str(metadata.get("namespace", "")), str(metadata.get("name", "")))


def version_of(manifest: Mapping[str, Any]) -> int:
    """The resourceVersion as a number: they are comparable within one kind (KEP-5504); 0 when absent."""
    text = str((manifest.get("metadata") or {}).get("resourceVersion", "") or "0")
    return int(text) if text.isdigit() else 0


def stripped(manifest: Mapping[str, Any]) -> Manifest:
    """Without what nobody reads and what makes up half of its size."""
    metadata = {key: value for key, value in (manifest.get("metadata") or {}).items() if key != "managedFields"}
    return {**manifest, "metadata": metadata}


def relevant(kind: Kind, manifest: Mapping[str, Any]) -> Manifest:
    """What a decision can depend on: an object that differs in nothing of this need wake nobody."""
    metadata = manifest.get("metadata") or {}
    slim = {name: value for name, value in metadata.items() if name not in {"resourceVersion", "managedFields"}}
    found = {**manifest, "metadata": slim}
    if kind is kinds.CONFIG_MAP and metadata.get("name") == LEDGER:
        # What the operator itself kept: it reads it after a start only.
        return {"metadata": {"namespace": slim.get("namespace"), "name": LEDGER}}
    if kind is kinds.AUTOSCALER and isinstance(found.get("status"), Mapping):
        # The autoscaler writes its readings every few seconds; the operator has its own.
        found["status"] = {
            name: value for name, value in found["status"].items() if name not in {"currentMetrics", "lastScaleTime"}
        }
    return found


def owned(manifest: Mapping[str, Any], *, shared: bool = False) -> bool:
    """Whether its controller is an object of ours; with `shared`, whether any of its owners is."""
    for reference in (manifest.get("metadata") or {}).get("ownerReferences") or ():
        ours = str(reference.get("apiVersion", "")).startswith("tierwise.dev/")
        if ours and (shared or reference.get("controller")):
            return True
    return False


def tier_key(manifest: Mapping[str, Any]) -> Key:
    """The tier that a child belongs to: by label, else by owner, else by its own name."""
    metadata = manifest.get("metadata") or {}
    namespace = str(metadata.get("namespace", ""))
    label = (metadata.get("labels") or {}).get(labels.TIER_LABEL)
    if label:
        return Key(namespace, str(label))
    for reference in metadata.get("ownerReferences") or ():
        if reference.get("controller") and reference.get("kind") == "ModelTier":
            return Key(namespace, str(reference.get("name", "")))
    return key_of(manifest)


def child(manifest: Manifest) -> Child:
    """Any owned object but a Deployment."""
    return Child(uid=str(manifest["metadata"].get("uid", "")), owned=owned(manifest), manifest=manifest)


def kept(manifest: Manifest) -> Child:
    """A namespace's last-good ConfigMap: all its policies own it, none is its controller."""
    return Child(uid=str(manifest["metadata"].get("uid", "")), owned=owned(manifest, shared=True), manifest=manifest)


def workload(manifest: Manifest) -> Workload:
    """A Deployment. Counts that the controller has not written yet are zero Pods: none exist before it has acted."""
    metadata = manifest["metadata"]
    spec = manifest.get("spec") or {}
    status = manifest.get("status") or {}
    generation = int(metadata.get("generation", 0))
    return Workload(
        uid=str(metadata.get("uid", "")),
        owned=owned(manifest),
        spec_replicas=int(spec.get("replicas", 1)),
        replicas=int(status.get("replicas", 0)),
        ready_replicas=int(status.get("readyReplicas", 0)),
        updated_replicas=int(status.get("updatedReplicas", 0)),
        observed_current=int(status.get("observedGeneration", 0)) >= generation,
        manifest=manifest,
    )


def endpoints(slices: Iterable[Mapping[str, Any]]) -> tuple[Endpoint, ...]:
    """All addresses of a tier's EndpointSlices, each once, sorted."""
    found: dict[tuple[str, int], Endpoint] = {}
    for one in slices:
        if one.get("addressType") not in {"IPv4", "IPv6"}:
            continue
        ports = [int(port["port"]) for port in one.get("ports") or () if port.get("port")]
        for entry in one.get("endpoints") or ():
            conditions = entry.get("conditions") or {}
            terminating = bool(conditions.get("terminating", False))
            # The API says: an unknown `ready` is to be read as true; `serving` falls back to `ready`.
            ready = conditions.get("ready") is not False
            serving = conditions.get("serving")
            for address in (entry.get("addresses") or ())[:1]:
                for port in ports[:1]:
                    found[str(address), port] = Endpoint(
                        address=str(address),
                        port=port,
                        ready=ready and not terminating,
                        serving=ready if serving is None else bool(serving),
                        terminating=terminating,
                        zone=entry.get("zone") or None,
                    )
    return tuple(sorted(found.values(), key=lambda endpoint: (endpoint.address, endpoint.port)))
