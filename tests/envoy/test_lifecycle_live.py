"""The gateway under pressure, from outside: what it bounds, what it refuses and how, and who may ask its admin port."""

import asyncio
import contextlib
import json
import socket
import stat
import time
from pathlib import Path

import pytest
from envoy_lab import Lab, external, in_cluster, policy, world

pytestmark = pytest.mark.asyncio(loop_scope="module")

MIB = 1 << 20


def one(port, *, outside=False):
    """One tier: an engine, or a provider, to which the way is longer."""
    classes = [{"name": "all", "tiers": [{"name": "compact"}]}]
    provider = external(f"http://localhost:{port}/v1", "compact", allowPlaintext=True, clearance="Public")
    tiers, ports = ([provider], {}) if outside else ([in_cluster()], {"legal/compact": [port]})
    return world(tiers, [policy(classes=classes)], ports)


@contextlib.asynccontextmanager
async def small_gateway(tmp_path, *, options=None, **more):
    lab = Lab(tmp_path, **(options or {}))
    try:
        yield await lab.start(**more)
    finally:
        await lab.stop()


def head(length: int, *, port: int) -> bytes:
    return (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ncontent-type: application/json\r\n"
        f"content-length: {length}\r\n\r\n"
    ).encode()


BODY = json.dumps({"model": "legal/assistant", "messages": []}).encode()


class Connection:
    """A client that sends byte by byte what a test wants."""

    async def open(self, port: int) -> "Connection":
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", port)
        return self

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        with contextlib.suppress(ConnectionError):  # refused meanwhile: what it answered tells
            await self.writer.drain()

    async def answer(self, *, seconds: float = 10.0):
        """Status, headers, body; status 0 when the connection was closed without an answer."""
        try:
            raw = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), seconds)
        except (asyncio.IncompleteReadError, ConnectionError):
            return 0, {}, b""
        first, *lines = raw.decode().strip().split("\r\n")
        headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in lines)}
        body = await asyncio.wait_for(self.reader.readexactly(int(headers.get("content-length", 0))), seconds)
        return int(first.split()[1]), headers, body

    def close(self) -> None:
        self.writer.close()


async def scraped(lab) -> dict[str, float]:
    """All that Prometheus reads, by series."""
    async with lab.http.get(f"http://127.0.0.1:{lab.metrics_port}/stats/prometheus") as response:
        assert response.status == 200
        lines = (await response.text()).splitlines()
    return {
        name: float(value)
        for name, value in (line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))
    }


async def heap_pressure(lab) -> float:
    """Percent of the bound; not shown before it was measured."""
    return max((value for name, value in (await scraped(lab)).items() if "fixed_heap_pressure" in name), default=0.0)


async def test_short_of_memory_it_refuses_new_requests_and_goes_on_with_running_ones(tmp_path, upstream):
    up = await upstream("up", chunk_gap=0.2, chunks=40)
    async with small_gateway(tmp_path, max_heap_bytes=150 * MIB) as lab:
        await lab.settle(one(up.port))
        stream = asyncio.create_task(lab.ask(stream=True))
        await lab.eventually(lambda: len(up.seen) == 1)
        before = await heap_pressure(lab)
        # Bodies that never end, as many as it takes. The gateway holds what it has of each.
        held = []
        while await heap_pressure(lab) < 92:
            assert len(held) < 12
            held.append(await Connection().open(lab.options.port))
            await held[-1].send(head(15 * MIB, port=lab.options.port) + b'{"x":"' + b"a" * (12 * MIB))
            await asyncio.sleep(0.4)
        print(f"heap {before:.0f}% -> {await heap_pressure(lab):.0f}% with {len(held)} bodies of 12 MiB")
        refused = await lab.ask()
        assert (refused.status, refused.headers["retry-after"]) == (503, "5")
        assert refused.headers["content-type"] == "application/json"
        assert refused.json["error"]["code"] == "overloaded"
        assert refused.json["error"]["type"] == "server_error"
        # It can still be seen, by the kubelet too: a restart would cut what is running.
        async with lab.http.get(f"http://127.0.0.1:{lab.metrics_port}/ready") as ready:
            assert ready.status == 200
        for each in held:
            each.close()
        took = await lab.eventually(lambda: answers(lab), seconds=10)
        print(f"back after {took:.1f} s")
        answer = await stream
        assert answer.status == 200
        assert answer.body.count(b'"by": "up"') == 40
        assert answer.body.endswith(b"data: [DONE]\n\n")


async def answers(lab) -> bool:
    return (await lab.ask()).status == 200


@pytest.mark.parametrize("outside", [False, True], ids=["engine", "provider"])
async def test_more_connections_than_allowed_are_closed_and_the_others_go_on(tmp_path, upstream, outside):
    up = await upstream("up", chunk_gap=0.1, chunks=20)
    async with small_gateway(tmp_path, max_connections=5) as lab:
        await lab.settle(one(up.port, outside=outside))
        stream = asyncio.create_task(lab.ask(stream=True))
        await lab.eventually(lambda: len(up.seen) == 1)
        kept = [await Connection().open(lab.options.port) for _ in range(4)]
        request = head(len(BODY), port=lab.options.port) + BODY
        for each in kept:
            await each.send(request)
            assert (await each.answer())[0] == 200
        for _ in range(10):
            more = await Connection().open(lab.options.port)
            await more.send(request)
            assert (await more.answer())[0] == 0, "one too many"
        for each in kept:
            await each.send(request)
            assert (await each.answer())[0] == 200
        # Prometheus and the kubelet come in all the same.
        async with lab.http.get(f"http://127.0.0.1:{lab.metrics_port}/ready") as ready:
            assert ready.status == 200
        refused = (
            f'envoy_listener_downstream_global_cx_overflow{{envoy_listener_address="127.0.0.1_{lab.options.port}"}}'
        )
        assert (await scraped(lab))[refused] == 10
        answer = await stream
        assert answer.body.count(b'"by": "up"') == 20
        kept[0].close()

        async def room() -> bool:
            another = await Connection().open(lab.options.port)
            await another.send(request)
            return (await another.answer())[0] == 200

        await lab.eventually(room)


async def test_slow_bodies_and_headers_end_and_streams_do_not(tmp_path, upstream):
    """The bound is on the request: a stream that lasts several times as long is not cut, nor is a slow answer."""
    up = await upstream("up", chunk_gap=0.25, chunks=20)
    async with small_gateway(tmp_path, options={"body_timeout_seconds": 1.0}) as lab:
        await lab.settle(one(up.port))
        stream = asyncio.create_task(lab.ask(stream=True))
        slow = await Connection().open(lab.options.port)
        began = time.monotonic()
        await slow.send(head(1000, port=lab.options.port))

        async def drip():
            while True:  # never silent for long
                await slow.send(b" ")
                await asyncio.sleep(0.1)

        dripping = asyncio.create_task(drip())
        status, headers, body = await slow.answer()
        took = time.monotonic() - began
        dripping.cancel()
        print(f"a body that drips is refused after {took:.2f} s")
        assert status == 408
        assert 0.9 < took < 3
        assert json.loads(body)["error"]["code"] == "request_timeout"
        assert headers["connection"] == "close"
        answer = await stream
        assert answer.body.count(b'"by": "up"') == 20, "five seconds long"
        assert len(up.seen) == 1, "a request that did not arrive whole reaches no tier"


@pytest.mark.parametrize("outside", [False, True], ids=["engine", "provider"])
async def test_headers_are_bounded(lab, upstream, outside):
    up = await upstream("up")
    await lab.settle(one(up.port, outside=outside))
    for headers in ({"x-big": "a" * 40_000}, {f"x-{number}": "a" for number in range(120)}):
        refused = await lab.ask(headers=headers)
        assert refused.status == 431
        assert refused.json["error"]["code"] == "headers_too_large"
    most = {f"x-{number}": "a" for number in range(85)}  # with the client's own ten and Envoy's, nearly a hundred
    assert (await lab.ask(headers={"x-big": "a" * 8_000, **most})).status == 200
    assert len(up.seen) == 1


async def test_streams_of_one_http2_connection_are_bounded(lab, upstream):
    """The gateway says how many it takes: what a client opens beyond waits at the client."""
    await lab.settle(one((await upstream("up")).port))
    client = await Connection().open(lab.options.port)
    await client.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04\x00" + bytes(4))
    length, kind = (raw := await client.reader.readexactly(9))[:3], raw[3]
    assert kind == 4, "SETTINGS"
    settings = await client.reader.readexactly(int.from_bytes(length))
    found = {
        int.from_bytes(settings[i : i + 2]): int.from_bytes(settings[i + 2 : i + 6]) for i in range(0, len(settings), 6)
    }
    client.close()
    assert found[3] == 100, "MAX_CONCURRENT_STREAMS"
    assert found[4] == MIB, "INITIAL_WINDOW_SIZE"


def admin_answers(lab, request: str, *, name="gateway-0") -> bytes:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5)
        client.connect(str(lab.folder / name / "admin.sock"))
        client.sendall(f"{request} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".encode())
        return b"".join(iter(lambda: client.recv(65536), b""))


def listening(pid: int) -> set[tuple[str, int]]:
    """Addresses (hexadecimal, as the kernel has them) and ports on which a process listens, IPv4."""
    sockets = {str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir() if entry.is_symlink()}
    found = set()
    for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
            address, port = fields[1].split(":")
            found.add((address, int(port, 16)))
    return found


async def test_the_admin_interface_is_a_private_socket_that_says_little(tmp_path):
    async with small_gateway(tmp_path) as lab:
        path = lab.folder / "gateway-0" / "admin.sock"
        assert stat.S_ISSOCK(path.stat().st_mode)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert admin_answers(lab, "GET /ready").startswith(b"HTTP/1.1 200")
        for request in (
            "GET /config_dump",
            "GET /stats",
            "GET /clusters",
            "POST /quitquitquit",
            "POST /logging",
            "GET /",
        ):
            assert admin_answers(lab, request).startswith(b"HTTP/1.1 403"), request
        # By TCP there are the API, the metrics and, on loopback, the preStop script's two requests: no admin port.
        ports = {lab.options.port, lab.metrics_port, lab.drain_port}
        assert listening(lab.envoys[0].pid) == {("0100007F", port) for port in ports}
        shown = {
            lab.metrics_port: {("GET", "/ready"), ("GET", "/stats/prometheus"), ("GET", "/stats/prometheus?a=b")},
            lab.drain_port: {("GET", "/active")},
        }
        asked = [
            "/ready",
            "/stats/prometheus",
            "/stats/prometheus?a=b",
            "/active",
            "/drain",
            "/",
            "/stats",
            "/config_dump",
            "/quitquitquit",
            "/drain_listeners",
            "/ready/../config_dump",
            "/ready?x=/config_dump",
        ]
        for port, wanted in shown.items():
            for method in ("GET", "PUT"):
                for path in asked:
                    async with lab.http.request(method, f"http://127.0.0.1:{port}{path}") as answer:
                        assert (answer.status == 200) == ((method, path) in wanted), (port, method, path)
                        assert answer.status in {200, 403, 404}, (port, method, path)


async def test_a_gateway_that_died_starts_again_over_its_old_socket(tmp_path):
    async with small_gateway(tmp_path) as lab:
        process = lab.envoys[0]
        process.kill()
        await process.wait()
        assert (lab.folder / "gateway-0" / "admin.sock").exists()
        await lab.envoy("gateway-0")
        assert admin_answers(lab, "GET /ready").startswith(b"HTTP/1.1 200")


async def test_the_drain_script_waits_for_the_last_request(tmp_path, upstream, pytestconfig):
    """charts/tierwise/files/drain.sh as the Pod runs it, but for its port."""
    up = await upstream("up", chunk_gap=0.1, chunks=40)
    async with small_gateway(tmp_path) as lab:
        await lab.settle(one(up.port))
        script = (pytestconfig.rootpath / "charts/tierwise/files/drain.sh").read_text()
        assert script.count("/9902") == 1
        (tmp_path / "drain.sh").write_text(script.replace("/9902", f"/{lab.drain_port}"))
        stream = asyncio.create_task(lab.ask(stream=True))
        await lab.eventually(lambda: len(up.seen) == 1)
        began = time.monotonic()
        drain = await asyncio.create_subprocess_exec("bash", str(tmp_path / "drain.sh"), "1", "60")

        async def closes() -> bool:
            return (await lab.ask()).headers.get("connection") == "close"

        await lab.eventually(closes)
        # Each from now on, as docs/install.md says: not by chance, more often as time goes, which is Envoy's default.
        assert all([await closes() for _ in range(20)])
        assert await drain.wait() == 0
        took = time.monotonic() - began
        assert stream.done(), "it ended before the last request"
        assert (await stream).body.count(b'"by": "up"') == 40
        print(f"drained in {took:.1f} s, a stream of 4 s in it")
        assert took < 15
        # Nothing is asked any more: the least time, and no more.
        began = time.monotonic()
        await (await asyncio.create_subprocess_exec("bash", str(tmp_path / "drain.sh"), "1", "60")).wait()
        assert 1 <= time.monotonic() - began < 5
