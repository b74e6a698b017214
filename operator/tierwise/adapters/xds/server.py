"""The Delta ADS service: gRPC, mTLS, and what gateways said, around `catalog` and `session`.

Everything runs in one event loop; nothing here waits while it changes state.
"""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import grpc
import structlog

from tierwise.adapters.xds.catalog import SHARED, Catalog, prepare
from tierwise.adapters.xds.session import Refused, Request, Response, Session
from tierwise.core.world import GatewayReport, World
from tierwise.errors import TierwiseError
from tierwise.render.envoy import concurrency, last_good, unattended
from tierwise.render.envoy.bundle import GatewayConfig, NamespaceBundle
from tierwise.render.envoy.protos import CLUSTER, EXTENSION, ROUTES, RUNTIME, SCOPE, Encoded, encode, message_class

log = structlog.get_logger(__name__)

_SERVICE = "envoy.service.discovery.v3.AggregatedDiscoveryService"
_REQUEST = "envoy.service.discovery.v3.DeltaDiscoveryRequest"
_RESPONSE = "envoy.service.discovery.v3.DeltaDiscoveryResponse"
_MAX_MESSAGE_BYTES = 256 * 1024 * 1024
_QUOTED_KEY = re.compile(r"""key: ?(".*?"|'.*?')""")
_MAX_WORDS = 1024
"""Characters of Envoy's refusal that are kept."""

# A gateway that is gone without a word is noticed within half a minute.
_OPTIONS = (
    ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 15_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.so_reuseport", 0),
)


class XdsError(TierwiseError):
    """The configuration service can not be started."""


class Tls(Protocol):
    """The server's pair and the authority of gateways' certificates, PEM; `adapters.certificates.Material` is one."""

    @property
    def ca(self) -> bytes:
        """Certificates that a gateway's must chain to."""
        ...

    @property
    def certificate(self) -> bytes:
        """The server's chain."""
        ...

    @property
    def key(self) -> bytes:
        """Its private key."""
        ...


class _Gauges(Protocol):
    """What `observe` sets: `runtime.telemetry.Metrics` has it."""

    @property
    def gateways(self) -> Any:  # noqa: ANN401 - a prometheus_client.Gauge with labels namespace and state
        """Connected gateways."""
        ...


@dataclass(slots=True, eq=False)
class _Stream:
    """One connected gateway.

    Attributes:
        node: its name. session: its state. wake: there may be something to send. said: what it said and nobody read.
        refused: namespace -> hash of the last bundle that it refused. lost: its side of the stream is over.
        layers: of its runtime that it asks for and forgets. beat: it is to be told whether somebody decides.
        limits: version of the limits of concurrency that it has (empty: of none); None: it does not ask for them.
    """

    node: str = ""
    session: Session = field(default_factory=Session)
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    said: list[Request] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    lost: bool = False
    layers: set[str] = field(default_factory=set)
    beat: bool = False
    limits: str | None = None


class XdsServer:
    """Serves gateways.

    Args:
        host: address to listen on.
        port: TCP port; 0 takes a free one.
        tls: asked at every handshake, so that a renewed certificate needs no restart; None: plaintext, for trials.
    """

    def __init__(self, host: str, port: int, tls: Callable[[], Tls] | None) -> None:
        self._host, self._port, self._tls = host, port, tls
        self._catalog = Catalog()
        self._streams: set[_Stream] = set()
        self._server: grpc.aio.Server | None = None
        self._changed: Callable[[], None] = lambda: None
        self._words: dict[str, str] = {}
        self._observed: set[tuple[str, str]] = set()
        self._decided: float | None = None  # when somebody was last seen to decide, by the event loop's clock
        self._beats = 0
        self._limits: Encoded | None = None  # of concurrency, as of the last configuration

    async def start(self, changed: Callable[[], None]) -> int:
        """Listen; the port. `changed` is called whenever a report may have changed.

        Raises:
            XdsError: the address can not be bound, or the certificate can not be read.
        """
        self._changed = changed
        # Kept in an attribute: a grpc.aio server that nobody refers to is collected, and just stops.
        self._server = server = grpc.aio.server(options=_OPTIONS)
        handler = grpc.stream_stream_rpc_method_handler(
            self._delta, message_class(_REQUEST).FromString, message_class(_RESPONSE).SerializeToString
        )
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(_SERVICE, {"DeltaAggregatedResources": handler}),)
        )
        address = f"[{self._host}]:{self._port}" if ":" in self._host else f"{self._host}:{self._port}"
        try:
            if self._tls is None:
                self._port = server.add_insecure_port(address)
            else:
                self._port = server.add_secure_port(address, credentials(self._tls))
        except RuntimeError as error:
            raise XdsError(f"can not listen for gateways on {address}: {error}") from error
        await server.start()
        return self._port

    async def stop(self, grace_seconds: float) -> None:
        """End all streams; gateways keep what they have and go to another replica."""
        if self._server is not None:
            for stream in self._streams:
                stream.lost = True
                stream.wake.set()
            await self._server.stop(grace_seconds)
            self._server = None

    async def publish(self, config: GatewayConfig, world: World) -> None:
        """Serve this configuration from now on, but what gateways have refused already."""
        heard, known, before = set(self._catalog.heard), dict(self._catalog.good), self._catalog.encoded
        prepared = await asyncio.to_thread(lambda: prepare(config, kept(world, heard, known), before))
        self._touch(self._catalog.publish(prepared))
        self._limits = encode(concurrency.layer(config.concurrency))
        for stream in self._streams:
            stream.wake.set()
        for namespace in [*self._words]:
            if namespace not in self._catalog.refused:
                del self._words[namespace]
        self._acknowledge(set(self._catalog.served))
        self._changed()

    def decided(self, age_seconds: float) -> None:
        """Somebody decides, and was last seen to do so many seconds ago: tell all gateways, which else act alone.

        To be called every few seconds, and not when nobody is known to.
        """
        self._decided = asyncio.get_running_loop().time() - age_seconds
        for stream in self._streams:
            stream.beat = True
            stream.wake.set()

    def reports(self) -> Mapping[str, GatewayReport]:
        """What the connected gateways say, by namespace."""
        catalog = self._catalog
        found = {}
        for namespace in sorted({*catalog.wanted, *catalog.invalid}):
            served = catalog.served.get(namespace)
            wanted = catalog.wanted.get(namespace)
            has = [served is not None and stream.session.acknowledged(served) for stream in self._streams]
            found[namespace] = GatewayReport(
                wanted_hash=wanted.hash if wanted is not None else "",
                served_hash=served.hash if served is not None else "",
                connected=len(self._streams),
                acknowledged=sum(has),
                refused=self._refusals(namespace),
                message=catalog.message(namespace) or self._words.get(namespace, ""),
            )
        return found

    def good(self) -> Mapping[str, NamespaceBundle]:
        """The last bundle of each namespace that all gateways connected here acknowledged."""
        return {namespace: self._catalog.good[namespace] for namespace in sorted(self._catalog.heard)}

    def observe(self, metrics: _Gauges) -> None:
        """Set the gauge of connected gateways, and forget namespaces that are gone."""
        seen = set()
        for namespace, report in self.reports().items():
            states = {
                "connected": report.connected,
                "acknowledged": report.acknowledged,
                "refused": report.refused,
            }
            for state, count in states.items():
                metrics.gateways.labels(namespace=namespace, state=state).set(count)
                seen.add((namespace, state))
        for namespace, state in self._observed - seen:
            with contextlib.suppress(KeyError):
                metrics.gateways.remove(namespace, state)
        self._observed = seen

    def _refusals(self, namespace: str) -> int:
        """Gateways that refused the newest bundle; at least one while it is held back, even if that one is gone."""
        wanted = self._catalog.wanted.get(namespace)
        if wanted is None:
            return len(self._streams)  # no configuration at all: nobody would take it
        refused = sum(1 for stream in self._streams if stream.refused.get(namespace) == wanted.hash)
        return max(refused, min(1, len(self._streams))) if namespace in self._catalog.refused else refused

    def _touch(self, owners: set[str]) -> None:
        if owners:
            for stream in self._streams:
                stream.session.touch(owners)
                stream.wake.set()

    def _acknowledge(self, owners: set[str]) -> None:
        for owner in owners - {SHARED}:
            served = self._catalog.served.get(owner)
            if served and self._streams and all(s.session.acknowledged(served) for s in self._streams):
                self._catalog.acknowledge(owner)

    async def _delta(self, said: AsyncIterator[Any], _context: object) -> AsyncIterator[Any]:
        stream = _Stream()
        reader = asyncio.create_task(self._read(said, stream), name="xds-reader")
        self._streams.add(stream)
        try:
            while not stream.lost:
                await stream.wake.wait()
                stream.wake.clear()
                self._take_in(stream)
                for response in stream.session.respond(self._catalog.served):
                    yield _to_message(response)
                for message in self._concurrency(stream):
                    yield message
                if stream.beat:
                    stream.beat = False
                    for message in self._layers(stream):
                        yield message
        finally:
            reader.cancel()
            self._streams.discard(stream)
            if not self._streams:
                self._catalog.deserted()
            log.info("a gateway is gone", gateway=stream.node, connected=len(self._streams))
            self._acknowledge(set(self._catalog.served))
            self._changed()

    async def _read(self, said: AsyncIterator[Any], stream: _Stream) -> None:
        try:
            async for message in said:
                if message.node.id and not stream.node:
                    stream.node = message.node.id
                    log.info("a gateway connected", gateway=stream.node, connected=len(self._streams))
                stream.said.append(_from_message(message))
                stream.wake.set()
        except grpc.aio.AioRpcError as error:
            log.info("a gateway's stream broke", gateway=stream.node, error=str(error.code()))
        finally:
            stream.lost = True
            stream.wake.set()

    def _take_in(self, stream: _Stream) -> None:
        said, stream.said = stream.said, []
        if not said:
            return
        owners: set[str] = set()
        for request in said:
            if request.type_url == RUNTIME:
                if request.error is not None:
                    log.warning("a gateway refused", gateway=stream.node, resource="Runtime", message=request.error)
                asked = {*request.subscribe}
                if concurrency.LAYER in asked:
                    stream.limits = request.versions.get(concurrency.LAYER, "")
                stream.layers |= asked - {concurrency.LAYER}
                stream.beat |= bool(asked)
                continue
            heard = stream.session.receive(request)
            owners |= heard.owners
            for refusal in heard.refused:
                self._refused(stream, refusal)
        self._acknowledge(owners)
        self._changed()

    def _concurrency(self, stream: _Stream) -> list[Any]:
        """The limits of now, where the gateway has others."""
        limits = self._limits
        if limits is None or stream.limits is None or stream.limits == limits.version:
            return []
        stream.limits = limits.version
        return [_to_message(Response(RUNTIME, f"limits-{limits.version}", (limits,), (), {}))]

    def _layers(self, stream: _Stream) -> list[Any]:
        """Layers of a gateway's runtime that it has to forget when nobody renews them."""
        if self._decided is None or not stream.layers:
            return []
        age = asyncio.get_running_loop().time() - self._decided
        self._beats += 1
        message: Any = message_class(_RESPONSE)()
        message.type_url = RUNTIME
        message.nonce = f"decided-{self._beats}"
        for name in sorted(stream.layers):
            seconds = unattended.seconds_of(name)
            if seconds is None or age >= seconds:
                message.removed_resources.append(name)
                continue
            layer = encode({"@type": RUNTIME, "name": name, "layer": unattended.decided(seconds)})
            added = message.resources.add(name=name, version="1")
            added.ttl.FromMilliseconds(int(1000 * (seconds - age)))
            added.resource.type_url = RUNTIME
            added.resource.value = layer.data
        return [message]

    def _refused(self, stream: _Stream, refusal: Refused) -> None:
        words = told(refusal)[:_MAX_WORDS]
        kind = refusal.type_url.rsplit(".", 1)[-1]
        log.warning("a gateway refused", gateway=stream.node, namespace=refusal.owner, resource=kind, message=words)
        if refusal.owner == SHARED:
            return
        self._words[refusal.owner] = words
        stream.refused[refusal.owner] = refusal.hash
        if refusal.type_url in {CLUSTER, SCOPE, ROUTES}:
            self._touch(self._catalog.refuse(refusal.owner, refusal.hash, words))


def told(refusal: Refused) -> str:
    """Envoy's words, without what it quotes of a resource that holds callers' keys."""
    if refusal.type_url != EXTENSION:
        return refusal.message
    return _QUOTED_KEY.sub('key: "(redacted)"', refusal.message.rpartition("}\n: ")[2])


def credentials(tls: Callable[[], Tls]) -> grpc.ServerCredentials:
    """Server credentials that ask for a client certificate and are read anew at every handshake."""

    def configuration() -> grpc.ServerCertificateConfiguration:
        now = tls()
        return grpc.ssl_server_certificate_configuration([(now.key, now.certificate)], root_certificates=now.ca)

    return grpc.dynamic_ssl_server_credentials(configuration(), configuration, require_client_authentication=True)


def kept(world: World, heard: set[str], known: Mapping[str, NamespaceBundle]) -> dict[str, NamespaceBundle]:
    """Last good bundles out of their ConfigMaps, of namespaces whose gateways here have not spoken, where news."""
    found = {}
    for namespace, child in world.last_good.items():
        data = child.manifest.get("data")
        if namespace in heard or not child.owned or not isinstance(data, Mapping):
            continue
        if namespace in known and known[namespace].hash == data.get("hash"):
            continue
        try:
            found[namespace] = last_good.unpack(namespace, data)
        except last_good.UnreadableLastGood as error:
            log.warning("a last good configuration can not be read", namespace=namespace, error=str(error))
    return found


def _from_message(message: Any) -> Request:  # noqa: ANN401 - generated class
    return Request(
        type_url=message.type_url,
        subscribe=tuple(message.resource_names_subscribe),
        unsubscribe=tuple(message.resource_names_unsubscribe),
        versions=dict(message.initial_resource_versions),
        nonce=message.response_nonce,
        error=message.error_detail.message if message.HasField("error_detail") else None,
    )


def _to_message(response: Response) -> Any:  # noqa: ANN401 - generated class
    message: Any = message_class(_RESPONSE)()
    message.type_url = response.type_url
    message.nonce = response.nonce
    message.system_version_info = next(iter(response.owners.values()), "")
    for resource in response.resources:
        added = message.resources.add(name=resource.name, version=resource.version)
        added.resource.type_url = resource.type_url
        added.resource.value = resource.data
    message.removed_resources.extend(response.removed)
    return message
