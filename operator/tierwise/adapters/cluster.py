"""The API server, as the operator uses it: list, read, apply, delete, record an event. Every call has a time-out.

`kubernetes.aio` does transport, authentication and token rotation; its dynamic client is given paths from `kinds`, so
it never runs API discovery. Answers are plain dicts. Errors are typed: what the caller can do about each differs.
"""

import asyncio
import contextlib
import json
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias

import aiohttp
from kubernetes.aio import client as kube
from kubernetes.aio import config as kube_config
from kubernetes.aio.client.exceptions import ApiException
from kubernetes.aio.config.config_exception import ConfigException
from kubernetes.aio.dynamic import DynamicClient

from tierwise.adapters import kinds
from tierwise.adapters.kinds import Kind
from tierwise.errors import TierwiseError

Manifest: TypeAlias = dict[str, Any]

# The library has no annotations for these.
_incluster: Callable[..., None] = kube_config.load_incluster_config
_kubeconfig: Callable[..., Awaitable[None]] = kube_config.load_kube_config
_contexts: Callable[..., tuple[list[dict[str, Any]], dict[str, Any]]] = kube_config.list_kube_config_contexts

DEFAULT_NAMESPACE = "default"
_POD_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")

FIELD_MANAGER = "tierwise"
APPLY = "application/apply-patch+yaml"
PAGE_SIZE = 500  # objects per LIST page: bounds memory of both sides
RETRY_DELAYS_SECONDS = (0.1, 0.4, 1.5)
_MESSAGE_LIMIT = 600


class ClusterError(TierwiseError):
    """The API server refused a request or could not be asked."""


class ForbiddenError(ClusterError):
    """401 or 403: our service account may not do this. Retrying does not help until someone changes RBAC."""


class NotFoundError(ClusterError):
    """404: the object, its namespace or its kind does not exist."""


class ConflictError(ClusterError):
    """409: another manager owns a field, the uid is another object's, or it already exists."""


class InvalidError(ClusterError):
    """400 or 422: the API server (schema, CEL rule, admission) does not accept the object as it is."""


class UnavailableError(ClusterError):
    """No answer in time, connection refused or lost, 429 or 5xx: worth another try later."""


class NotConnectedError(ClusterError):
    """No configuration for reaching a cluster."""


@dataclass(frozen=True, slots=True)
class Listing:
    """One complete LIST: the items, each with apiVersion and kind, and the resourceVersion they are valid at."""

    items: tuple[Manifest, ...]
    resource_version: str


def error_of(status: int, reason: str, body: bytes | str | None, what: str) -> ClusterError:
    """The typed error for an HTTP status, with the API server's own message."""
    message = reason or ""
    if body:
        try:
            decoded = json.loads(body)
        except ValueError:
            decoded = None
        if isinstance(decoded, dict) and decoded.get("message"):
            message = str(decoded["message"])
    text = f"{what}: {status} {message}"[:_MESSAGE_LIMIT]
    match status:
        case 401 | 403:
            return ForbiddenError(text)
        case 404:
            return NotFoundError(text)
        case 409:
            return ConflictError(text)
        case 429:
            return UnavailableError(text)
        case _ if 400 <= status < 500:
            return InvalidError(text)
        case _:
            return UnavailableError(text)


class Cluster:
    """A connection to one API server. Use as an async context manager, or call `close`.

    Args:
        api: configured API client; closed with this object.
        timeout_seconds: for each request.
        jitter: gives a number in [0, 1) for backoff; replaceable in tests.
    """

    def __init__(
        self, api: kube.ApiClient, *, timeout_seconds: float = 5.0, jitter: Callable[[], float] = random.random
    ) -> None:
        self.api = api
        self._dynamic = DynamicClient(api)  # type: ignore[no-untyped-call]  # the library has no annotations here
        self._timeout_seconds = timeout_seconds
        self._jitter = jitter

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        await self.api.close()  # type: ignore[no-untyped-call]  # as above

    async def list(self, kind: Kind, *, namespace: str | None = None, label_selector: str | None = None) -> Listing:
        """All objects of a kind, in one namespace or all, in pages."""
        items: list[Manifest] = []
        query: list[tuple[str, str]] = []
        token = ""
        while True:
            query = [("limit", str(PAGE_SIZE))]
            if token:
                query.append(("continue", token))
            if label_selector:
                query.append(("labelSelector", label_selector))
            page = await self._retried("GET", kind.path(namespace), query=query)
            for item in page.get("items") or ():
                # Items of a list carry neither; everything downstream expects whole objects.
                item.setdefault("apiVersion", kind.api_version)
                item.setdefault("kind", kind.name)
                items.append(item)
            metadata = page.get("metadata") or {}
            token = metadata.get("continue") or ""
            if not token:
                return Listing(tuple(items), str(metadata.get("resourceVersion", "")))

    async def get(self, kind: Kind, namespace: str, name: str) -> Manifest:
        """One object. Raises NotFoundError."""
        return await self._retried("GET", kind.path(namespace, name))

    async def apply(self, manifest: Mapping[str, Any], *, manager: str = FIELD_MANAGER, force: bool = True) -> Manifest:
        """Server-side apply; returns the object as it now is."""
        kind, namespace, name = _locate(manifest)
        return await self._retried("PATCH", kind.path(namespace, name), **_apply_arguments(manifest, manager, force))

    async def apply_status(
        self, manifest: Mapping[str, Any], *, manager: str = FIELD_MANAGER, force: bool = True
    ) -> Manifest:
        """Server-side apply of the status subresource; returns the object as it now is."""
        kind, namespace, name = _locate(manifest)
        path = kind.path(namespace, name, "status")
        return await self._retried("PATCH", path, **_apply_arguments(manifest, manager, force))

    async def scale(self, kind: Kind, namespace: str, name: str, replicas: int, *, uid: str = "") -> None:
        """Set the replicas through the scale subresource (for what an HPA does not do: 0 to 1 and 1 to 0).

        Written by a manager of its own: the HPA goes on owning `spec.replicas` beside it, and no later apply of the
        Deployment takes the field away.
        """
        body: Manifest = {"spec": {"replicas": replicas}}
        if uid:
            body["metadata"] = {"uid": uid}
        await self._retried(
            "PATCH",
            kind.path(namespace, name, "scale"),
            body=body,
            content_type="application/merge-patch+json",
            query=[("fieldManager", f"{FIELD_MANAGER}-scale")],
        )

    async def delete(self, kind: Kind, namespace: str, name: str, *, uid: str) -> None:
        """Delete exactly the object with this uid; gone already is fine. Raises ConflictError on another uid."""
        body = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": "Background",
            "preconditions": {"uid": uid},
        }
        try:
            await self._retried("DELETE", kind.path(namespace, name), body=body)
        except NotFoundError:
            return

    async def create(self, manifest: Mapping[str, Any]) -> Manifest:
        """Create an object; raises ConflictError when it exists."""
        kind, namespace, _ = _locate(manifest)
        return await self._retried(
            "POST",
            kind.path(namespace),
            body=dict(manifest),
            content_type="application/json",
            query=[("fieldManager", FIELD_MANAGER)],
        )

    async def secret(self, namespace: str, name: str) -> Manifest:
        """One Secret by name: GET only, our role has no LIST of Secrets."""
        return await self.get(kinds.SECRET, namespace, name)

    async def lease(self, namespace: str, name: str) -> Manifest:
        """One Lease."""
        return await self.get(kinds.LEASE, namespace, name)

    async def patch_lease_holder(self, namespace: str, name: str, *, resource_version: str) -> None:
        """Give a Lease up: its holder becomes nobody, if it is still the version that we renewed."""
        body = {"metadata": {"resourceVersion": resource_version}, "spec": {"holderIdentity": None}}
        await self._request(
            "PATCH",
            kinds.LEASE.path(namespace, name),
            body=body,
            content_type="application/merge-patch+json",
        )

    async def _retried(self, method: str, path: str, **arguments: Any) -> Manifest:  # noqa: ANN401 - as _request
        for delay in RETRY_DELAYS_SECONDS:
            try:
                return await self._request(method, path, **arguments)
            except UnavailableError:
                # Full jitter above half: operators that lost the same API server do not come back in step.
                await asyncio.sleep(delay * (0.5 + self._jitter()))
        return await self._request(method, path, **arguments)

    async def _request(
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        content_type: str | None = None,
        query: Sequence[tuple[str, str]] = (),
    ) -> Manifest:
        what = f"{method} {path}"
        try:
            async with asyncio.timeout(self._timeout_seconds):
                response = await self._dynamic.request(
                    method,
                    path,
                    body=dict(body) if body is not None else None,
                    query_params=list(query),
                    header_params={},
                    content_type=content_type,
                    serialize=False,
                    # The library's own default is five minutes.
                    _request_timeout=self._timeout_seconds,
                )
                payload = await response.read()
        except ApiException as error:
            raise error_of(error.status or 0, str(error.reason or ""), error.body, what) from error
        except TimeoutError as error:
            raise UnavailableError(f"{what}: no answer within {self._timeout_seconds:g} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise UnavailableError(f"{what}: {type(error).__name__}: {error}"[:_MESSAGE_LIMIT]) from error
        try:
            decoded = json.loads(payload)
        except ValueError as error:
            raise UnavailableError(f"{what}: the answer is no JSON") from error
        if not isinstance(decoded, dict):
            raise UnavailableError(f"{what}: the answer is no object")
        return decoded


def _locate(manifest: Mapping[str, Any]) -> tuple[Kind, str, str]:
    metadata = manifest.get("metadata") or {}
    if not all((manifest.get("apiVersion"), manifest.get("kind"), metadata.get("namespace"), metadata.get("name"))):
        raise InvalidError(f"no namespaced object: {manifest.get('kind')} {metadata.get('name')}")
    kind = kinds.kind_of(str(manifest["apiVersion"]), str(manifest["kind"]))
    return kind, str(metadata["namespace"]), str(metadata["name"])


def _apply_arguments(manifest: Mapping[str, Any], manager: str, force: bool) -> dict[str, Any]:  # noqa: FBT001 - private
    return {
        "body": manifest,
        "content_type": APPLY,
        "query": [("fieldManager", manager), ("force", "true" if force else "false")],
    }


async def configure(kubeconfig: Path | None = None, context: str | None = None) -> kube.Configuration:
    """Where the cluster is: a kubeconfig when named, else the Pod's service account, else the user's kubeconfig.

    Raises:
        NotConnectedError: when there is none of them.
    """
    configuration = kube.Configuration()
    try:
        if kubeconfig is None and context is None:
            try:
                _incluster(client_configuration=configuration)
            except ConfigException:
                await _kubeconfig(client_configuration=configuration)
            return configuration
        await _kubeconfig(
            config_file=str(kubeconfig) if kubeconfig else None, context=context, client_configuration=configuration
        )
    except (ConfigException, OSError) as error:
        raise NotConnectedError(f"no way to reach a cluster: {error}") from error
    return configuration


def namespace_of(kubeconfig: Path | None = None, context: str | None = None) -> str:
    """The namespace that kubectl would use: the context's, the Pod's own, else "default"."""
    if kubeconfig is None and context is None:
        with contextlib.suppress(OSError):
            return _POD_NAMESPACE.read_text(encoding="utf-8").strip() or DEFAULT_NAMESPACE
    try:
        contexts, active = _contexts(str(kubeconfig) if kubeconfig else None)
    except (ConfigException, OSError):
        return DEFAULT_NAMESPACE
    chosen = next((one for one in contexts or () if one["name"] == context), None) if context else active
    return str(((chosen or {}).get("context") or {}).get("namespace") or DEFAULT_NAMESPACE)


def connect(configuration: kube.Configuration, *, timeout_seconds: float = 5.0) -> Cluster:
    """A connection; nothing is sent yet."""
    return Cluster(kube.ApiClient(configuration=configuration), timeout_seconds=timeout_seconds)
