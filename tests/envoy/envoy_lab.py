"""A real Envoy on loopback, our configuration server, and upstreams that record what reaches them."""

import asyncio
import contextlib
import dataclasses
import io
import json
import random
import shutil
import socket
import ssl
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import trustme
from aiohttp import web

from tierwise.adapters.xds import XdsServer
from tierwise.api.consumer import Consumer
from tierwise.api.model_tier import ModelTier
from tierwise.api.namespace_budget import NamespaceBudget
from tierwise.api.routing_policy import RoutingPolicy
from tierwise.core.world import Endpoint, Key, SecretData, World
from tierwise.render.envoy import bootstrap, gateway
from tierwise.render.envoy.options import GatewayOptions
from tierwise.render.envoy.protos import ENDPOINTS

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
REFUSED_PORT = 9  # discard: nothing listens


def free_port() -> int:
    """Below the range from which the kernel takes ports for connections: it stays free until a server has bound it."""
    while True:
        port = random.randrange(10_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def in_cluster(name="compact", namespace="legal", model="qwen3-8b", **spec):
    return ModelTier.parse(
        {
            "metadata": {"name": name, "namespace": namespace, "uid": f"uid-{name}"},
            "spec": {
                "model": model,
                "inCluster": {
                    "engine": "VLLM",
                    "image": "vllm/vllm-openai:v0.24.0",
                    "replicas": {"min": 1, "max": 4},
                },
                **spec,
            },
        }
    )


def external(url, name="frontier", namespace="legal", model="provider-large-1", clearance="Internal", **spec):
    return ModelTier.parse(
        {
            "metadata": {"name": name, "namespace": namespace, "uid": f"uid-{name}"},
            "spec": {"model": model, "clearance": clearance, "external": {"url": url, **spec}},
        }
    )


def policy(name="assistant", namespace="legal", created=NOW, status=None, **spec):
    given = {
        "models": ["assistant"],
        "sensitivity": "Public",
        "classes": [{"name": "all", "tiers": [{"name": "compact"}, {"name": "frontier"}]}],
        **spec,
    }
    return RoutingPolicy.parse(
        {
            "metadata": {
                "name": name,
                "namespace": namespace,
                "uid": f"uid-{name}",
                "creationTimestamp": created.isoformat(),
            },
            "spec": given,
            **({"status": status} if status else {}),
        }
    )


def consumer(name="app", namespace="legal", created=NOW, **spec):
    given = spec or {"apiKeys": [{"name": f"{name}-key"}]}
    metadata = {"name": name, "namespace": namespace, "uid": f"uid-{name}", "creationTimestamp": created.isoformat()}
    return Consumer.parse({"metadata": metadata, "spec": given})


def budget(name="ceiling", namespace="legal", exempt=(), unpriced="Allow", **enforcement):
    """With what its ladder decided, if anything."""
    shown = {"since": NOW.isoformat(), "resetsAt": "2026-12-01T00:00:00Z", **enforcement}
    return NamespaceBudget.parse(
        {
            "metadata": {"name": name, "namespace": namespace, "uid": f"uid-{name}"},
            "spec": {
                "ceiling": "100",
                "ladder": [{"atPercent": 100, "action": "Deny"}],
                "exempt": list(exempt),
                "unpriced": unpriced,
            },
            "status": {"enforcement": shown} if enforcement else {},
        }
    )


def world(tiers=(), policies=(), endpoints=None, secrets=None, consumers=(), budgets=(), now=NOW, **more):
    return World(
        now=now,
        replica="operator-0",
        tiers={Key(t.metadata.namespace, t.metadata.name): t for t in tiers},
        policies={Key(p.metadata.namespace, p.metadata.name): p for p in policies},
        budgets={Key(b.metadata.namespace, b.metadata.name): b for b in budgets},
        consumers={Key(c.metadata.namespace, c.metadata.name): c for c in consumers},
        endpoints={
            Key(*key.split("/")): tuple(Endpoint("127.0.0.1", port, True, True, False) for port in ports)
            for key, ports in (endpoints or {}).items()
        },
        secrets={
            Key(*key.split("/")): SecretData({name: value.encode() for name, value in data.items()})
            for key, data in (secrets or {}).items()
        },
        **more,
    )


@dataclass
class Seen:
    path: str
    host: str
    headers: dict
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)


@dataclass
class Upstream:
    """Answers as an OpenAI server would, or as told by `fault`."""

    name: str
    port: int = 0
    fault: str = ""  # a status code, "reset", "slow"
    fault_headers: dict = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)
    usage: dict = field(default_factory=lambda: {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10})
    chunk_gap: float = 0.0
    chunks: int = 3

    async def start(self, context: ssl.SSLContext | None = None) -> "Upstream":
        app = web.Application(client_max_size=32 << 20)
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=context)
        await site.start()
        self.port = site._server.sockets[0].getsockname()[1]
        return self

    async def stop(self) -> None:
        await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.seen.append(Seen(request.path_qs, request.host, headers, body))
        if self.fault.isdigit():
            return web.json_response(
                {"error": {"message": self.name}}, status=int(self.fault), headers=self.fault_headers
            )
        if self.fault == "reset":
            request.transport.abort()
            return web.Response()
        if self.fault == "slow":
            await asyncio.sleep(5)
        asked = json.loads(body) if body else {}
        if not asked.get("stream"):
            return web.json_response({"object": "chat.completion", "by": self.name, "usage": self.usage})
        response = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        for number in range(self.chunks):
            delta = {"by": self.name, "choices": [{"index": 0, "delta": {"content": str(number)}}]}
            await response.write(f"data: {json.dumps(delta)}\n\n".encode())
            if self.chunk_gap:
                await asyncio.sleep(self.chunk_gap)
        if asked.get("stream_options", {}).get("include_usage"):
            await response.write(f"data: {json.dumps({'choices': [], 'usage': self.usage})}\n\n".encode())
        await response.write(b"data: [DONE]\n\n")
        return response


@dataclass
class Material:
    ca: bytes
    certificate: bytes
    key: bytes


@dataclass
class Answer:
    status: int
    headers: dict
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def tier(self):
        return self.headers.get("x-tierwise-tier")

    @property
    def by(self):
        """Upstream that answered, whatever headers say."""
        return self.json.get("by")


class Lab:
    """One configuration server and one Envoy (more with `another`)."""

    def __init__(self, folder: Path, **options) -> None:
        self.folder = folder
        self.workers = 1
        self.authority = trustme.CA()
        self.server_certificate = self.authority.issue_cert("tierwise-xds.test")
        self.client_certificate = self.authority.issue_cert("tierwise-gateway")
        self.changes = asyncio.Event()
        self.options = GatewayOptions(port=free_port(), address="127.0.0.1", access_log=True, **options)
        self.xds = XdsServer("127.0.0.1", 0, self.material)
        self.envoys: list[asyncio.subprocess.Process] = []
        self.metrics_ports: dict[asyncio.subprocess.Process, int] = {}
        self.world = world()
        self.xds_name = "tierwise-xds.test"
        self.patience = 10.0  # seconds for an answer
        self.zone = ""  # of gateways that are started from now on

    def material(self) -> Material:
        pair = self.server_certificate
        return Material(
            self.authority.cert_pem.bytes(),
            b"".join(pem.bytes() for pem in pair.cert_chain_pems),
            pair.private_key_pem.bytes(),
        )

    async def start(self, **more) -> "Lab":
        self.http = aiohttp.ClientSession()
        await self.publish(self.world)
        self.xds_port = await self.xds.start(self.changes.set)
        self.xds.decided(0)  # gateways of a test act alone only where it says so
        await self.envoy("gateway-0", **more)
        return self

    async def stop(self) -> None:
        for process in self.envoys:
            await self.end(process)
        await self.xds.stop(0)
        await self.http.close()

    async def end(self, process) -> None:
        if process.returncode is None:
            process.terminate()
            await process.wait()

    def write_client_certificate(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True, parents=True)
        pair = self.client_certificate
        (folder / "tls.crt").write_bytes(b"".join(pem.bytes() for pem in pair.cert_chain_pems))
        (folder / "tls.key").write_bytes(pair.private_key_pem.bytes())
        (folder / "ca.crt").write_bytes(self.authority.cert_pem.bytes())

    def start_files(self, name: str, *, metrics_port: int, drain_port: int, **more) -> Path:
        folder = self.folder / name
        self.write_client_certificate(folder / "xds")
        options = bootstrap.BootstrapOptions(
            xds_host="127.0.0.1",
            xds_port=self.xds_port,
            xds_name=self.xds_name,
            xds_dns=False,
            certificates=str(folder / "xds"),
            files=str(folder),
            admin_path=str(folder / "admin.sock"),
            drain_port=drain_port,
            metrics_address="127.0.0.1",
            metrics_port=metrics_port,
            **more,
        )
        for file, content in bootstrap.files(options).items():
            (folder / file).write_text(json.dumps(content))
        return folder

    async def envoy(self, name: str, **more) -> asyncio.subprocess.Process:
        """Start one, with more options of the bootstrap, and wait until it is ready."""
        self.drain_port, metrics = free_port(), free_port()
        folder = self.start_files(name, metrics_port=metrics, drain_port=self.drain_port, **more)
        log = (folder / "log").open("ab")
        process = await asyncio.create_subprocess_exec(
            *(
                shutil.which("envoy") or "envoy",
                "-c",
                str(folder / bootstrap.BOOTSTRAP_FILE),
                "--concurrency",
                str(self.workers),
            ),
            *("--disable-hot-restart", "--service-node", name, "--service-cluster", "tierwise", "-l", "warning"),
            *("--service-zone", self.zone, "--component-log-level", "config:error"),
            *("--file-flush-interval-msec", "100"),
            # As the chart starts it. Without, each answer closes its connection by chance only, for ten minutes.
            *("--drain-time-s", "15", "--drain-strategy", "immediate"),
            stdout=log,
            stderr=log,
        )
        log.close()
        self.envoys.append(process)
        self.metrics_ports[process] = metrics
        self.metrics_port = metrics
        await self.eventually(lambda: self.ready(metrics, process, folder), seconds=60)
        return process

    async def ready(self, port, process, folder) -> bool:
        assert process.returncode is None, (
            (folder / "log").read_text()[:2000] + "\n...\n" + (folder / "log").read_text()[-1500:]
        )
        with contextlib.suppress(aiohttp.ClientError, OSError):
            async with self.http.get(f"http://127.0.0.1:{port}/ready") as response:
                return response.status == 200
        return False

    async def publish(self, new: World, change=None) -> None:
        """Serve a world; `change` may plant a defect in what was rendered."""
        self.world = new
        self.config = gateway.render(new, self.options)
        if change is not None:
            self.config = change(self.config)
        await self.xds.publish(self.config, new)

    async def settle(self, new: World, change=None, *, seconds: float = 5.0) -> None:
        """Publish, and wait until all gateways have taken all of it."""
        await self.publish(new, change)

        def taken() -> bool:
            reports = self.xds.reports().values()
            addresses = all(
                stream.session._types[ENDPOINTS].has(found)
                for stream in self.xds._streams
                for served in self.xds._catalog.served.values()
                for found in served.of(ENDPOINTS).values()
            )
            return addresses and all(
                r.connected and r.acknowledged == r.connected and r.served_hash == r.wanted_hash for r in reports
            )

        await self.eventually(taken, seconds=seconds)
        await self.worked()

    async def worked(self) -> None:
        """One answer of each gateway: what its main thread has acknowledged has reached its worker by then.

        On a busy machine a request that comes right after the acknowledgement may meet a worker that did not run since.
        """
        for process, port in self.metrics_ports.items():
            if process.returncode is None:
                with contextlib.suppress(aiohttp.ClientError, OSError):  # it is about to end
                    async with self.http.get(f"http://127.0.0.1:{port}/ready") as response:
                        await response.read()

    async def eventually(self, holds, *, seconds: float = 5.0) -> float:
        """Wait until it holds; seconds that it took."""
        began = time.monotonic()
        while True:
            result = holds()
            if asyncio.iscoroutine(result):
                result = await result
            if result:
                return time.monotonic() - began
            assert time.monotonic() - began < seconds, f"not within {seconds} s: {self.xds.reports()}"
            await asyncio.sleep(0.01)

    async def ask(self, model="legal/assistant", *, path="/v1/chat/completions", headers=None, body=None, **fields):
        return await self.ask_at(self.options.port, model, path=path, headers=headers, body=body, **fields)

    async def ask_at(
        self, port, model="legal/assistant", *, path="/v1/chat/completions", headers=None, body=None, **fields
    ):
        given = body if body is not None else json.dumps({"model": model, "messages": [], **fields}).encode()
        if isinstance(given, bytes):
            given = io.BytesIO(given)
        sent = {"content-type": "application/json", **(headers or {})}
        url = f"http://127.0.0.1:{port}{path}"
        async with self.http.post(
            url, data=given, headers=sent, timeout=aiohttp.ClientTimeout(self.patience)
        ) as response:
            raw = await response.read()
            return Answer(response.status, {k.lower(): v for k, v in response.headers.items()}, raw)

    async def count(self, times: int, **asked) -> Counter:
        """Which upstream answered, or the status that was answered instead."""
        found: Counter = Counter()
        for _ in range(times):
            answer = await self.ask(**asked)
            found[answer.by if answer.status == 200 else answer.status] += 1
        return found

    async def metrics(self) -> dict[str, float]:
        """Our counters as Prometheus would scrape them, labels sorted."""
        async with self.http.get(f"http://127.0.0.1:{self.metrics_port}/stats/prometheus") as response:
            text = await response.text()
        found = {}
        for line in text.splitlines():
            if line.startswith("envoy_tierwise_") and "_bucket" not in line:
                series, value = line.rsplit(" ", 1)
                found[series] = float(value)
        return found

    def log(self, name="gateway-0") -> str:
        return (self.folder / name / "log").read_text()


def without(config, namespace):
    """A configuration that lacks a namespace."""
    kept = {name: bundle for name, bundle in config.namespaces.items() if name != namespace}
    return dataclasses.replace(config, namespaces=kept)
