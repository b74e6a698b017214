"""Signals and usage from a real Prometheus: values, ages, missing against zero, restarts of gateway and Prometheus."""

import asyncio
import os
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from rich.console import Console

from tierwise import yaml_text
from tierwise.adapters import prometheus
from tierwise.adapters.prometheus import Prometheus, PrometheusError
from tierwise.adapters.queries import Targets
from tierwise.api.in_cluster import InCluster, Replicas
from tierwise.core.signals import Missing, Reading
from tierwise.devcluster import build
from tierwise.runtime.targets import metrics_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

COMPACT, FRONTIER = ("team-a", "compact"), ("team-a", "frontier")
CLASS = ("team-a", "assistant", "routine")
ENGINE = InCluster(image="vllm/vllm-openai:v0.24.0", replicas=Replicas(min=1, max=1))
TARGETS = Targets(
    in_cluster={COMPACT: metrics_of(ENGINE)},
    external=frozenset({FRONTIER}),
    classes={CLASS: ("compact", "frontier")},
)
WINDOW = 10


class Exporter:
    """A metrics endpoint whose text tests set; it can be taken away and come back on the same port."""

    def __init__(self):
        self.text = ""
        self.server = None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.start()

    def start(self):
        exporter = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                body = exporter.text.encode()
                self.send_response(200)
                self.send_header("Content-Type", "text/plain; version=0.0.4")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()


class Gateway(Exporter):
    """Counts as Envoy does."""

    def __init__(self):
        self.born = time.time()
        self.counts = {}
        super().__init__()
        self.show()

    def restart(self):
        self.born = time.time()
        self.counts = {}
        self.show()

    def serve(self, count, *, tier="compact", code="200", usage=True):
        labels = (
            f'tierwise_namespace="team-a",tierwise_policy="assistant",tierwise_class="routine",tierwise_tier="{tier}"'
        )

        def add(name, value, more=""):
            key = f"envoy_tierwise_{name}{{{labels}{more}}}"
            self.counts[key] = self.counts.get(key, 0) + value

        add("requests", count, f',code="{code}"')
        if usage:
            add("usage_requests", count)
            add("prompt_tokens", count * 100)
            add("completion_tokens", count * 10)
            for bound in (100, 200, 400, "+Inf"):
                add("ttfb_bucket", count if bound != 100 else 0, f',le="{bound}"')
        self.show()

    def attempt(self, counts):
        for name, tiers in counts.items():
            for tier, count in tiers.items():
                labels = 'tierwise_namespace="team-a",tierwise_policy="assistant",tierwise_class="routine"'
                key = f'envoy_tierwise_{name}{{{labels},tierwise_tier="{tier}"}}'
                self.counts[key] = self.counts.get(key, 0) + count
        self.show()

    def show(self):
        lines = [f"{key} {value}" for key, value in self.counts.items()]
        self.text = "\n".join([f"envoy_server_uptime {time.time() - self.born:.0f}", *lines]) + "\n"


@pytest.fixture(scope="module")
def binary():
    return build.binaries(Console(stderr=True)).prometheus


class Server:
    def __init__(self, binary, folder, gateway, engine):
        self.binary, self.folder = binary, folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

        def job(name, port, **labels):
            return {"job_name": name, "static_configs": [{"targets": [f"127.0.0.1:{port}"], "labels": labels}]}

        config = {
            "global": {"scrape_interval": "1s"},
            "scrape_configs": [
                job("gateway", gateway.port, tierwise_component="gateway"),
                job("engine", engine.port, tierwise_tier="compact", namespace="team-a"),
            ],
        }
        (folder / "prometheus.yml").write_text(yaml_text.dump(config))
        self.start()

    def start(self):
        self.process = subprocess.Popen(
            [
                str(self.binary),
                f"--config.file={self.folder}/prometheus.yml",
                f"--storage.tsdb.path={self.folder}/data",
                f"--web.listen-address=127.0.0.1:{self.port}",
                "--log.level=error",
            ]
        )
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"{self.url}/-/ready", timeout=1):  # noqa: S310 - loopback
                    return
            except OSError:
                time.sleep(0.1)
        raise AssertionError("Prometheus did not start")

    def kill(self):
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def lab(binary, tmp_path):
    gateway, engine = Gateway(), Exporter()
    server = Server(binary, tmp_path, gateway, engine)
    source = Prometheus(prometheus.connection(server.url), window_seconds=WINDOW)

    class Lab:
        pass

    lab = Lab()
    lab.gateway, lab.engine, lab.server, lab.source = gateway, engine, server, source
    yield lab
    source.close()
    if server.process.poll() is None:
        server.kill()
    for one in (gateway, engine):
        one.stop()


def now():
    return datetime.now(UTC)


async def until(lab, accept, seconds=30, targets=TARGETS):
    """Read until the signals are as expected."""
    deadline = time.monotonic() + seconds
    while True:
        signals = await lab.source.read(targets, now())
        if accept(signals):
            return signals
        assert time.monotonic() < deadline, signals
        await asyncio.sleep(0.5)


async def test_values_ages_and_zero(lab):
    signals = await until(lab, lambda s: isinstance(s.gateways_up, Reading))
    assert signals.gateways_up.value == 1
    assert signals.gateways_up.age_seconds < 2.5
    rate = signals.classes[CLASS]["compact"].request_rate
    assert isinstance(rate, Reading)
    assert rate.value == 0, "scraped and without a series: no traffic"
    assert isinstance(signals.tiers[COMPACT].running, Missing), "an engine without metrics is not idle"
    lab.engine.text = (
        'vllm:num_requests_running{model_name="a"} 3\n'
        'vllm:num_requests_waiting{model_name="a"} 0\n'
        "vllm:kv_cache_usage_perc NaN\n"
        'vllm:time_to_first_token_seconds_bucket{le="0.5"} 0\n'
        'vllm:time_to_first_token_seconds_bucket{le="+Inf"} 0\n'
    )
    stop = asyncio.Event()

    async def load():
        while not stop.is_set():
            lab.gateway.serve(9)
            lab.gateway.serve(1, code="503", usage=False)
            await asyncio.sleep(0.5)

    task = asyncio.create_task(load())
    try:
        signals = await until(
            lab,
            lambda s: (
                isinstance(s.tiers[COMPACT].running, Reading)
                and isinstance(s.classes[CLASS]["compact"].request_rate, Reading)
                and abs(s.classes[CLASS]["compact"].request_rate.value - 20) < 3
            ),
        )
    finally:
        stop.set()
        await task
    tier, one = signals.tiers[COMPACT], signals.classes[CLASS]["compact"]
    assert tier.running.value == 3
    assert tier.waiting.value == 0
    assert tier.running.age_seconds < 2.5
    assert tier.ready_replicas.value == 1
    assert isinstance(tier.kv_cache_usage, Missing)
    assert isinstance(tier.ttft_p95_seconds, Missing), "no observation in the window"
    assert tier.error_rate.value == pytest.approx(0.1, abs=0.03)
    assert one.prompt_tokens.value == pytest.approx(100, rel=0.01)
    assert one.completion_tokens.value == pytest.approx(10, rel=0.01)
    assert 0.1 < one.ttfb_p95_seconds.value <= 0.2
    assert signals.classes[CLASS]["frontier"].request_rate.value == 0
    lab.gateway.stop()
    signals = await until(lab, lambda s: isinstance(s.classes[CLASS]["compact"].request_rate, Missing))
    assert isinstance(signals.gateways_up, Missing), "gone is not idle"
    lab.gateway.start()
    await until(lab, lambda s: isinstance(s.gateways_up, Reading))


async def test_what_a_tier_took_of_counters_that_may_have_no_series(lab):
    """Arrivals, later attempts and what was passed on: summed where a tier has one, two or all of them."""
    await until(lab, lambda s: isinstance(s.gateways_up, Reading))
    counts = {"arrivals": {"compact": 10}, "saturated": {"compact": 4}, "retries": {"frontier": 3}}
    stop = asyncio.Event()

    async def load():
        while not stop.is_set():
            lab.gateway.attempt(counts)
            await asyncio.sleep(0.5)

    def steady(signals):
        peaks = [signals.classes[CLASS][tier].taken_peak_rate for tier in ("compact", "frontier")]
        return all(isinstance(one, Reading) and one.value > 2 for one in peaks)

    task = asyncio.create_task(load())
    try:
        signals = await until(lab, steady, seconds=60)
    finally:
        stop.set()
        await task
    first, other = signals.classes[CLASS]["compact"], signals.classes[CLASS]["frontier"]
    # As shares, for a busy machine keeps no pace; each is asked a moment after the one before.
    rate, peak = first.request_rate.value, first.peak_rate.value
    assert first.taken_rate.value == pytest.approx(0.6 * rate, rel=0.2)
    assert first.taken_peak_rate.value == pytest.approx(0.6 * peak, rel=0.2)
    assert signals.tiers[COMPACT].passed_rate.value == pytest.approx(0.4 * rate, rel=0.2)
    assert other.request_rate.value == 0
    assert other.taken_rate.value == pytest.approx(0.3 * rate, rel=0.2)
    assert other.taken_peak_rate.value == pytest.approx(0.3 * peak, rel=0.2)


async def test_every_token_is_counted_once_through_restarts_of_everything(lab):
    """New series, a gateway's restart and an outage of Prometheus in between; the sum is what was served."""
    served = 0
    counted = 0.0
    requests = 0.0
    await until(lab, lambda s: isinstance(s.gateways_up, Reading))

    async def read():
        nonlocal counted, requests
        signals = await lab.source.read(TARGETS, now())
        for reading in signals.usage.values():
            counted += reading.output_tokens
            requests += reading.requests

    async def serve(rounds, tier="compact"):
        nonlocal served
        for _ in range(rounds):
            lab.gateway.serve(3, tier=tier)
            served += 30
            await asyncio.sleep(0.25)

    await read()
    await serve(8)
    await read()
    await serve(4, tier="frontier")  # a series that did not exist at the last read
    await asyncio.sleep(2.2)
    await read()
    assert counted == served
    await asyncio.sleep(1.5)  # the last scrape before the restart has seen everything
    lab.gateway.restart()
    await serve(8)
    await asyncio.sleep(2.2)
    await read()
    assert counted == served
    lab.server.kill()
    with pytest.raises(PrometheusError):
        await lab.source.read(TARGETS, now())
    await serve(8)
    lab.server.start()
    deadline = time.monotonic() + 30
    while counted < served and time.monotonic() < deadline:  # its discovery takes some seconds before the first scrape
        await asyncio.sleep(0.5)
        await read()
    await asyncio.sleep(1.5)
    await read()
    assert counted == served
    assert requests == served / 10


async def test_usage_during_the_operators_own_absence_is_recovered(lab):
    await until(lab, lambda s: isinstance(s.gateways_up, Reading))
    lab.gateway.serve(5)
    await asyncio.sleep(2.2)
    checkpoint = time.time()
    lab.gateway.serve(7)
    lab.gateway.serve(2, tier="frontier")
    await asyncio.sleep(2.2)
    successor = Prometheus(prometheus.connection(lab.server.url), window_seconds=WINDOW)
    try:
        targets = Targets(
            in_cluster=TARGETS.in_cluster, external=TARGETS.external, ledger_since={"team-a": (checkpoint,)}
        )
        usage = (await successor.read(targets, now())).usage
    finally:
        successor.close()
    assert usage[COMPACT].output_tokens == 70
    assert usage[FRONTIER].output_tokens == 20
    assert usage[COMPACT].since.timestamp() == pytest.approx(checkpoint, abs=0.01)
