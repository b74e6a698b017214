"""When a namespace's configuration is worth keeping, and the ConfigMap that keeps it. Pure.

What a replica's gateways have all acknowledged is kept; fresh gateways get it while a newer render is refused, from
other replicas too and after a restart. It carries no secrets and no endpoints, and goes with the last policy.

One replica keeps it: of those with gateways the first by name, from its own memory, whether it decides or not. The one
that decides may have no gateway, and a refusal can follow an acknowledgement faster than one replica tells another.

Whoever may write ConfigMaps in a namespace could else put any configuration before the gateways that all share: it is
signed with a key that only operators can read, and what is not signed so is not there.
"""

import hashlib
import hmac
from collections.abc import Mapping
from typing import Any

from tierwise.api.meta import API_VERSION
from tierwise.api.routing_policy import RoutingPolicy
from tierwise.core.plan import Manifest
from tierwise.core.world import World
from tierwise.render.envoy import last_good
from tierwise.render.envoy.bundle import NamespaceBundle
from tierwise.runtime import objects

# The API server takes objects up to about 1.5 MiB and ConfigMaps up to 1 MiB of data.
MAX_BYTES = 900 * 1024
SIGNATURE = "tierwise.dev/signature"
# Says what it is, and is no number to any reader of YAML. Earlier versions signed without it.
_SCHEME = "hmac-sha256:"


def signature(namespace: str, data: Mapping[str, Any], key: bytes) -> str:
    """`hmac-sha256:` and the code in hexadecimal, over the namespace and all of the data."""
    parts = [namespace, *(part for name in sorted(data) for part in (name, str(data[name])))]
    message = b"".join(len(part.encode()).to_bytes(8, "big") + part.encode() for part in parts)
    return _SCHEME + hmac.new(key, message, hashlib.sha256).hexdigest()


def genuine(manifest: Mapping[str, Any], key: bytes) -> bool:
    """Whether an operator wrote this ConfigMap, for its namespace."""
    metadata = manifest.get("metadata") or {}
    said = _SCHEME + str((metadata.get("annotations") or {}).get(SIGNATURE, "")).removeprefix(_SCHEME)
    expected = signature(str(metadata.get("namespace", "")), manifest.get("data") or {}, key)
    return bool(key) and hmac.compare_digest(said.encode(), expected.encode())


def signed(manifest: Manifest, key: bytes) -> Manifest:
    """A ConfigMap with our signature."""
    metadata = manifest["metadata"]
    annotations = {SIGNATURE: signature(str(metadata["namespace"]), manifest["data"], key)}
    return {**manifest, "metadata": {**metadata, "annotations": annotations}}


def manifests(
    world: World, good: Mapping[str, NamespaceBundle], key: bytes
) -> tuple[tuple[Manifest, ...], tuple[str, ...]]:
    """ConfigMaps to apply, and namespaces whose configuration is too large to be kept, sorted.

    Args:
        world: of now.
        good: namespace -> what this replica's gateways have all acknowledged.
        key: to sign with.
    """
    wanted: list[Manifest] = []
    too_large: list[str] = []
    for namespace, bundle in sorted(good.items()):
        policies = world.policies_in(namespace)
        if not policies or bundle.routes is None or not _keeps(world, namespace, bundle.hash, policies):
            continue
        owners = [_owner(policy) for _, policy in sorted(policies.items())]
        held = world.last_good.get(namespace)
        if held is not None and _same(held.manifest, bundle.hash, owners):
            continue
        data = last_good.pack(bundle)
        if sum(len(value) for value in data.values()) > MAX_BYTES:
            too_large.append(namespace)
            continue
        wanted.append(
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {
                    "name": last_good.NAME,
                    "namespace": namespace,
                    "labels": {objects.MANAGED_BY: objects.MANAGER},
                    "annotations": {SIGNATURE: signature(namespace, data, key)},
                    "ownerReferences": owners,
                },
                "data": data,
            }
        )
    return tuple(wanted), tuple(too_large)


def _keeps(world: World, namespace: str, version: str, policies: Mapping[str, RoutingPolicy]) -> bool:
    """Whether this replica is the one that keeps it, and no other's gateways have refused it."""
    own = world.gateways.get(namespace)
    if own is None or not own.connected:
        return False
    for policy in policies.values():
        for entry in policy.status.gateways:
            alive = world.live_replicas is None or entry.name in world.live_replicas
            if entry.name == world.replica or not alive or not entry.connected:
                continue
            if entry.name < world.replica or (entry.refused and entry.hash == version):
                return False
    return True


def _owner(policy: RoutingPolicy) -> dict[str, Any]:
    metadata = policy.metadata
    return {"apiVersion": API_VERSION, "kind": "RoutingPolicy", "name": metadata.name, "uid": metadata.uid}


def _same(held: Mapping[str, Any], wanted: str, owners: list[dict[str, Any]]) -> bool:
    known = {str(reference.get("uid")) for reference in (held.get("metadata") or {}).get("ownerReferences") or ()}
    return (held.get("data") or {}).get("hash") == wanted and known == {str(owner["uid"]) for owner in owners}
