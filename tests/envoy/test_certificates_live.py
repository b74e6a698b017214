"""Certificates of the gateways' channel change under way: leaves, and the authority. Only handshakes show it."""

import asyncio
import contextlib
import copy
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import pytest
from envoy_lab import Lab, in_cluster, policy, world

from tierwise.adapters import certificates
from tierwise.adapters.cluster import NotFoundError
from tierwise.adapters.xds import XdsServer

NAMESPACE = "tierwise-system"


class Secrets:
    """What the API server keeps of the channel."""

    def __init__(self):
        self.held = {}

    async def secret(self, _namespace, name):
        if name not in self.held:
            raise NotFoundError(name)
        return copy.deepcopy(self.held[name])

    async def create(self, manifest):
        self.held[manifest["metadata"]["name"]] = copy.deepcopy(dict(manifest)) | {}
        self.held[manifest["metadata"]["name"]]["metadata"]["resourceVersion"] = "1"
        return await self.secret(NAMESPACE, manifest["metadata"]["name"])

    apply = create

    def material(self, name):
        return certificates.read(self.held[name])


class Relay:
    """Between gateway and operator, to cut the connection: only a handshake shows which certificates count."""

    def __init__(self, port):
        self.port = port
        self.writers = set()

    async def start(self):
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        return self.server.sockets[0].getsockname()[1]

    async def serve(self, reader, writer):
        there, back = await asyncio.open_connection("127.0.0.1", self.port)
        self.writers |= {writer, back}
        with contextlib.suppress(ConnectionError):
            await asyncio.gather(self.pump(reader, back), self.pump(there, writer))

    async def pump(self, reader, writer):
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()
        self.writers.discard(writer)

    def cut(self):
        for writer in self.writers:
            writer.transport.abort()
        self.writers = set()


class Server(XdsServer):
    """Remembers whose certificate each gateway showed."""

    def __init__(self, *given):
        super().__init__(*given)
        self.shown = []

    async def _delta(self, said, context):
        (certificate,) = context.auth_context()["x509_pem_cert"]
        self.shown.append(bytes(certificate))
        async for message in super()._delta(said, context):
            yield message


class Channel(Lab):
    """A lab whose certificates come from Secrets, and reach the gateway as the kubelet brings them."""

    def __init__(self, folder, secrets):
        super().__init__(folder)
        self.secrets = secrets
        self.serving = secrets.material(certificates.SERVER)
        self.xds_name = certificates.server_names(NAMESPACE)[0]
        self.xds = Server("127.0.0.1", 0, self.material)
        self.versions = 0
        self.patience = 30.0

    def material(self):
        return self.serving

    def write_client_certificate(self, folder):
        """A new folder, and a link that is moved to it: all three files change at once."""
        folder.mkdir(exist_ok=True, parents=True)
        self.versions += 1
        data = folder / f"..{self.versions}"
        data.mkdir()
        held = self.secrets.material(certificates.CLIENT)
        for name, content in (("tls.crt", held.certificate), ("tls.key", held.key), ("ca.crt", held.ca)):
            (data / name).write_bytes(content)
            if not (folder / name).is_symlink():
                (folder / name).symlink_to(Path("..data", name))
        (folder / "..data_tmp").symlink_to(data.name)
        (folder / "..data_tmp").replace(folder / "..data")

    async def start(self):
        self.http = aiohttp.ClientSession()
        await self.publish(self.world)
        self.relay = Relay(await self.xds.start(self.changes.set))
        self.xds_port = await self.relay.start()
        await self.envoy("gateway-0")
        return self

    async def stop(self):
        await super().stop()
        self.relay.server.close()

    async def shows(self, *, server=False, gateway=False):
        """One side takes what its Secret holds now."""
        if server:
            self.serving = self.secrets.material(certificates.SERVER)
        if gateway:
            self.write_client_certificate(self.folder / "gateway-0" / "xds")
            await asyncio.sleep(0.3)

    async def reconnected(self, *, seconds=10.0):
        """Cut, and wait until the gateway is back; what it showed."""
        before = len(self.xds.shown)
        self.relay.cut()
        await self.eventually(lambda: len(self.xds.shown) > before, seconds=seconds)
        return self.xds.shown[-1]


def aged(*, authority_due, seconds_left=8):
    """Secrets with leaves that run out in a few seconds; the authority, too, is due for renewal, or fresh."""
    now = datetime.now(UTC)
    started = now - certificates.AUTHORITY_LIFE * (certificates.RENEW_AT if authority_due else 0.1)
    authority = certificates.issue_authority(started - timedelta(hours=1))
    secrets = Secrets()
    secrets.held[certificates.AUTHORITY] = certificates._manifest(NAMESPACE, certificates.AUTHORITY, authority)
    issued = now - certificates.LEAF_LIFE + timedelta(seconds=seconds_left)
    for name, subject, names, server in (
        (certificates.SERVER, certificates.SERVICE, certificates.server_names(NAMESPACE), True),
        (certificates.CLIENT, certificates.CLIENT, ("tierwise-gateway",), False),
    ):
        pair = certificates.issue(authority, subject, names, issued, server=server)
        secrets.held[name] = certificates._manifest(NAMESPACE, name, pair)
    for held in secrets.held.values():
        held["metadata"]["resourceVersion"] = "0"
    return secrets


def either(first, second, goal):
    tiers = [{"name": "compact", "weight": 100 - goal}, {"name": "large", "weight": goal}]
    classes = [{"name": "all", "tiers": tiers}]
    ports = {"legal/compact": [first.port], "legal/large": [second.port]}
    return world([in_cluster(), in_cluster("large")], [policy(classes=classes)], ports)


@pytest.mark.parametrize(("authority_due", "passes"), [(False, 1), (True, 2)], ids=["leaves", "authority"])
async def test_certificates_change_without_a_restart_or_a_failed_request(
    tmp_path, upstream, authority_due, passes, monkeypatch
):
    # Hours go by between the passes; each side has read the first one's result before the second one signs.
    monkeypatch.setattr(certificates, "SETTLE", timedelta(0))
    secrets = aged(authority_due=authority_due)
    old_server, old_client = (secrets.material(name) for name in (certificates.SERVER, certificates.CLIENT))
    expired_secrets = copy.deepcopy(secrets.held)
    a, b = await upstream("a", chunk_gap=0.25, chunks=60), await upstream("b", chunk_gap=0.25, chunks=60)
    lab = Channel(tmp_path, secrets)
    done, answers, pushes = False, [], 0

    async def load():
        while not done:
            answers.append((await lab.ask()).status)
            await asyncio.sleep(0.02)

    async def push():
        """Weights back and forth: a change has to arrive whatever certificates do."""
        nonlocal pushes
        while not done:
            await lab.settle(either(a, b, 100 if pushes % 2 else 0), seconds=10)
            pushes += 1
            await asyncio.sleep(0.1)

    try:
        await lab.start()
        await lab.settle(either(a, b, 50))
        assert lab.xds.shown[-1].strip() == old_client.certificate.strip()
        streams = [asyncio.create_task(lab.ask(stream=True)) for _ in range(4)]
        await lab.eventually(lambda: len(a.seen) + len(b.seen) >= 4)
        working = [asyncio.create_task(load()), asyncio.create_task(push())]
        for number in range(passes):
            await certificates.ensure(secrets, NAMESPACE, datetime.now(UTC))
            # Either side may be the first to read what is new.
            order = [{"server": True}, {"gateway": True}]
            for side in order if number % 2 == 0 else reversed(order):
                await lab.shows(**side)
                await lab.reconnected()
        server, client = (secrets.material(name) for name in (certificates.SERVER, certificates.CLIENT))
        assert server.certificate != old_server.certificate
        assert lab.xds.shown[-1].strip() == client.certificate.strip() != old_client.certificate.strip()
        assert (client.ca != old_client.ca) == authority_due
        await asyncio.sleep(max(0.0, (old_client.not_after - datetime.now(UTC)).total_seconds() + 1))
        await lab.reconnected()
        await lab.eventually(lambda: pushes > 20, seconds=30)
        done = True
        await asyncio.gather(*working)
        print(
            f"{len(answers)} requests, {sum(status != 200 for status in answers)} failed, {pushes} pushes, "
            f"{len(lab.xds.shown)} handshakes"
        )
        assert set(answers) == {200}
        for stream in await asyncio.gather(*streams):
            assert stream.body.endswith(b"data: [DONE]\n\n"), "a stream was cut"
            assert stream.body.count(b"data: ") >= 61
        assert lab.envoys[0].returncode is None
        assert len(lab.envoys) == 1

        # What ran out counts no more, neither here nor there: with either old pair the gateway gets nothing new.
        for name in (certificates.SERVER, certificates.CLIENT):
            renewed = secrets.held[name]
            secrets.held[name] = copy.deepcopy(expired_secrets[name])
            secrets.held[name]["data"]["ca.crt"] = renewed["data"]["ca.crt"]
            await lab.shows(server=True, gateway=True)
            with pytest.raises(AssertionError, match="not within"):
                await lab.reconnected(seconds=4)
            assert (await lab.ask()).status == 200, "it goes on with what it has"
            secrets.held[name] = renewed
            await lab.shows(server=True, gateway=True)
            await lab.eventually(lambda: lab.xds._streams, seconds=10)
    finally:
        done = True
        await lab.stop()
