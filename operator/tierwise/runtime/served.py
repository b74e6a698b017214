"""What the operator would serve gateways now, in one pass: the same objects, the same store, renderer and catalog.

`tierwise envoy-config` shows it. Nothing is written and no gateway is asked: what gateways refuse is read from the
policies' statuses.
"""

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tierwise.adapters import certificates, kinds
from tierwise.adapters.cluster import Cluster, ClusterError, ForbiddenError, NotFoundError
from tierwise.adapters.xds.catalog import SHARED, Catalog, Served, prepare
from tierwise.adapters.xds.server import kept
from tierwise.core import consumers
from tierwise.core.world import Key, World
from tierwise.errors import TierwiseError
from tierwise.render.envoy import concurrency, gateway, redact, secrets
from tierwise.render.envoy.bundle import GatewayConfig
from tierwise.render.envoy.options import GatewayOptions
from tierwise.render.envoy.protos import RUNTIME, TYPE_PREFIX, message_class, to_json
from tierwise.runtime import channel, objects, zones
from tierwise.runtime.secrets import decode
from tierwise.runtime.store import ROUTES, Store

READ = tuple(kind for kind in kinds.WATCHED if kind in ROUTES)
FIGURES = frozenset({"classes", "tiers"})
"""What a file of figures for `tierwise plan` holds: it lies beside manifests and is none."""

_OPERATOR = "tierwise.dev/component=operator"


class UnreadableError(TierwiseError):
    """Objects can not be read from where they were said to be."""


@dataclass(frozen=True, slots=True)
class Shown:
    """What gateways are served, redacted.

    Attributes:
        owners: namespace, or "" for what belongs to none -> version and resources.
        notes: namespace -> what is not as its objects want it, and why.
        missing: namespace -> Secrets that are referred to and not there.
        broken: namespaces without a valid configuration, or with objects that are none.
    """

    owners: Mapping[str, "Owned"]
    notes: Mapping[str, tuple[str, ...]]
    missing: Mapping[str, tuple[str, ...]]
    broken: frozenset[str]


@dataclass(frozen=True, slots=True)
class Owned:
    """Resources of one owner.

    Attributes:
        hash: of the bundle. last_good: it is not the newest one. resources: type URL -> name -> resource.
    """

    hash: str
    last_good: bool
    resources: Mapping[str, Mapping[str, dict[str, Any]]]


async def from_cluster(cluster: Cluster, namespaces: Iterable[str], *, fallback: str | None = None) -> Store:
    """All objects that the configuration depends on.

    Args:
        cluster: where they are.
        namespaces: that the operator serves; none: all.
        fallback: a namespace to read alone when the others may not be read.

    Raises:
        ClusterError: they can not be read.
    """
    store = Store("envoy-config")
    scopes: tuple[str | None, ...] = tuple(namespaces) or (None,)
    try:
        await _list(cluster, store, scopes)
    except ForbiddenError:
        if fallback is None:
            raise
        store = Store("envoy-config")
        await _list(cluster, store, (fallback,))
    return store


async def _list(cluster: Cluster, store: Store, scopes: tuple[str | None, ...]) -> None:
    for kind in READ:
        selector = None if kind.ours else objects.SELECTOR
        for namespace in scopes:
            store.relist(kind, namespace, await cluster.list(kind, namespace=namespace, label_selector=selector))
        store.listed(kind)


async def read_secrets(cluster: Cluster, store: Store) -> dict[Key, str]:
    """Put the Secrets that are referred to into the store; those that can not be read, with the reason."""
    unreadable: dict[Key, str] = {}
    for key in sorted(store.secret_references()):
        try:
            store.put_secret(key, decode(await cluster.secret(key.namespace, key.name)))
        except NotFoundError:
            unreadable[key] = "not found"
        except ForbiddenError:
            unreadable[key] = "you may not read it; the operator may be able to"
    return unreadable


async def operators_environment(cluster: Cluster, namespace: str) -> dict[str, str]:
    """The environment of the operator that is installed there: how it was told to render. Empty: none can be seen."""
    try:
        found = await cluster.list(kinds.DEPLOYMENT, namespace=namespace, label_selector=_OPERATOR)
    except ClusterError:
        return {}
    return {
        str(variable["name"]): str(variable["value"])
        for deployment in found.items
        for container in deployment["spec"]["template"]["spec"]["containers"]
        for variable in container.get("env") or ()
        if "value" in variable
    }


async def read_gateway_zones(cluster: Cluster, store: Store, namespace: str) -> None:
    """How many gateways are ready in each zone; none where they can not be seen."""
    with contextlib.suppress(ClusterError):
        found = await cluster.list(kinds.POD, namespace=namespace, label_selector=zones.SELECTOR)
        store.put_gateway_zones(zones.counted(found.items))


async def read_signing_key(cluster: Cluster, store: Store, namespace: str) -> bool:
    """What last-good configurations are signed with; whether it may be read."""
    try:
        authority = certificates.read(await cluster.secret(namespace, certificates.AUTHORITY))
    except (ClusterError, certificates.CertificateError):
        return False
    store.put_signing_key(channel.derived(authority.key))
    return True


def from_files(paths: Iterable[Path], namespace: str) -> Store:
    """Manifests in files (YAML or JSON), of the kinds that matter; others are passed over.

    Args:
        paths: files, and folders whose files are read.
        namespace: of manifests that name none.

    Raises:
        UnreadableError: a file can not be read, or is no manifest.
    """
    store = Store("envoy-config")
    by_name = {(kind.api_version, kind.name): kind for kind in READ}
    for path, manifest in _manifests(paths):
        metadata = manifest.setdefault("metadata", {})
        metadata.setdefault("namespace", namespace)
        if not metadata.get("name"):
            raise UnreadableError(f"{path}: {manifest['kind']} has no metadata.name")
        kind = by_name.get((str(manifest["apiVersion"]), str(manifest["kind"])))
        if kind is not None:
            store.put(kind, manifest)
        elif manifest["kind"] == "Secret" and manifest["apiVersion"] == "v1":
            text = {name: str(value).encode() for name, value in (manifest.get("stringData") or {}).items()}
            found = decode(manifest)
            store.put_secret(objects.key_of(manifest), type(found)({**found.data, **text}))
    return store


def _manifests(paths: Iterable[Path]) -> Iterable[tuple[Path, dict[str, Any]]]:
    for path in paths:
        files = sorted(each for each in path.rglob("*") if each.suffix in {".yaml", ".yml", ".json"})
        for file in files if path.is_dir() else [path]:
            try:
                documents = [each for each in yaml.safe_load_all(file.read_text(encoding="utf-8")) if each]
            except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
                raise UnreadableError(f"{file}: {error}") from error
            for document in documents:
                if (
                    isinstance(document, dict)
                    and not {"apiVersion", "kind"} & document.keys()
                    and FIGURES & document.keys()
                ):
                    continue  # figures for `tierwise plan`
                items = document.get("items", [document]) if isinstance(document, dict) else [document]
                for item in items:
                    if not isinstance(item, dict) or not {"apiVersion", "kind"} <= item.keys():
                        raise UnreadableError(f"{file}: no manifest: it has no apiVersion and kind")
                    yield file, item


def catalog(world: World, config: GatewayConfig) -> Catalog:
    """What a replica serves that has just started: refusals are those that the policies' statuses tell of."""
    found = Catalog()
    found.publish(prepare(config, kept(world, set(), {})))
    for key, policy in world.policies.items():
        for entry in policy.status.gateways:
            if entry.refused and entry.hash:
                found.refuse(key.namespace, entry.hash, entry.message or "a gateway refused it")
    return found


def show(
    world: World, options: GatewayOptions, *, unreadable: Mapping[Key, str] | None = None, signed: bool = True
) -> Shown:
    """Render, and take all secrets out.

    Args:
        world: of now.
        options: of the gateways.
        unreadable: Secrets that could not be read, and why.
        signed: last-good configurations could be checked.
    """
    config = gateway.render(world, options)
    found = catalog(world, config)
    redacted = redact.Redactor(_values(world))
    notes: dict[str, list[str]] = {}
    broken: set[str] = set()
    for (kind, key), error in sorted(world.invalid.items(), key=str):
        notes.setdefault(key.namespace, []).append(f"{kind} {key.name} is not valid: {error}")
        broken.add(key.namespace)
    owners = {}
    for owner, served in sorted(found.served.items()):
        wanted = found.wanted.get(owner)
        last_good = owner != SHARED and (wanted is None or wanted.hash != served.hash)
        owners[owner] = Owned(served.hash, last_good, _resources(served, redacted) | _limits(config, owner))
    for namespace in sorted({*found.wanted, *found.invalid, *found.refused, *found.unsafe}):
        told = found.message(namespace)
        if not told:
            continue
        broken.add(namespace)
        held = owners.get(namespace)
        state = "nothing is served" if held is None else "the last good one is served" if held.last_good else ""
        if held is not None and not held.last_good:
            why = "could not be read" if not signed else "is not kept"
            state = f"gateways keep what they had, which {why}; this is the newest"
        notes.setdefault(namespace, []).append(f"the newest configuration is refused ({told}): {state}")
    return Shown(
        owners=owners,
        notes={namespace: tuple(each) for namespace, each in sorted(notes.items())},
        missing=_missing(world, unreadable or {}),
        broken=frozenset(broken),
    )


def _values(world: World) -> frozenset[str]:
    """All values of Secrets, as they stand and as they are used."""
    values = {value.decode("utf-8", "replace") for secret in world.secrets.values() for value in secret.data.values()}
    return frozenset(values | {value.strip() for value in values})


def _resources(served: Served, redacted: redact.Redactor) -> dict[str, dict[str, dict[str, Any]]]:
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for type_url, resources in served.resources.items():
        kind = message_class(type_url.removeprefix(TYPE_PREFIX))
        for name, resource in sorted(resources.items()):
            shown = to_json(redacted(kind.FromString(resource.data)))
            found.setdefault(type_url, {})[name] = {"@type": type_url, **shown}
    return found


def _limits(config: GatewayConfig, namespace: str) -> dict[str, dict[str, dict[str, Any]]]:
    """The namespace's part of the layer of all limits: Envoy knows none by namespace, readers do."""
    own = {name: most for name, most in config.concurrency.items() if name.partition("/")[0] == namespace}
    return {RUNTIME: {concurrency.LAYER: concurrency.layer(own)}} if own else {}


def _missing(world: World, unreadable: Mapping[Key, str]) -> dict[str, tuple[str, ...]]:
    found: dict[str, list[str]] = {}
    for key, tier in sorted(world.tiers.items()):
        ref = tier.spec.external.credentials_ref if tier.spec.external is not None else None
        if ref is None or secrets.credential_value(world, key, tier) is not None:
            continue
        at = Key(key.namespace, ref.name)
        held = world.secrets.get(at)
        why = unreadable.get(at) or ("not found" if held is None else "has no such key, or no usable value in it")
        found.setdefault(key.namespace, []).append(
            f"Secret {ref.name}, key {ref.key}: {why}; ModelTier {key.name} takes no request without it"
        )
    for key, problems in consumers.settle(world).problems.items():
        found.setdefault(key.namespace, []).extend(f"Consumer {key.name}: {each.message}" for each in problems)
    return {namespace: tuple(each) for namespace, each in sorted(found.items())}
