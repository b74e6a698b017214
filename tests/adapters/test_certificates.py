import asyncio
import copy
import ssl
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tierwise.adapters import certificates
from tierwise.adapters.cluster import ConflictError, NotFoundError

NOW = datetime(2026, 11, 25, 8, 0, tzinfo=UTC)


class FakeSecrets:
    """Secrets with the API server's rules for versions; every call gives way, so that callers interleave."""

    def __init__(self) -> None:
        self.held: dict[str, dict[str, Any]] = {}
        self.writes = 0

    async def secret(self, namespace: str, name: str) -> dict[str, Any]:
        await asyncio.sleep(0)
        if name not in self.held:
            raise NotFoundError(f"{namespace}/{name}")
        return copy.deepcopy(self.held[name])

    async def create(self, manifest: Mapping[str, Any]) -> dict[str, Any]:
        await asyncio.sleep(0)
        if manifest["metadata"]["name"] in self.held:
            raise ConflictError("exists")
        return self._write(manifest)

    async def apply(self, manifest: Mapping[str, Any]) -> dict[str, Any]:
        await asyncio.sleep(0)
        held = self.held[manifest["metadata"]["name"]]
        if manifest["metadata"]["resourceVersion"] != held["metadata"]["resourceVersion"]:
            raise ConflictError("version")
        return self._write(manifest)

    def _write(self, manifest: Mapping[str, Any]) -> dict[str, Any]:
        self.writes += 1
        held = copy.deepcopy(dict(manifest))
        held["metadata"]["resourceVersion"] = str(self.writes)
        self.held[held["metadata"]["name"]] = held
        return copy.deepcopy(held)


async def test_replicas_that_race_end_with_one_set() -> None:
    secrets = FakeSecrets()
    found = await asyncio.gather(*(certificates.ensure(secrets, "tierwise-system", NOW) for _ in range(4)))
    assert len({material.certificate for material in found}) == 1
    assert sorted(secrets.held) == ["tierwise-xds-ca", "tierwise-xds-client", "tierwise-xds-server"]
    assert secrets.writes == 3


async def test_a_fresh_set_is_left_alone_and_an_old_one_is_renewed_under_the_same_authority() -> None:
    secrets = FakeSecrets()
    first = await certificates.ensure(secrets, "tierwise-system", NOW)
    again = await certificates.ensure(secrets, "tierwise-system", NOW + timedelta(days=59))
    assert again.certificate == first.certificate
    assert secrets.writes == 3
    renewed = await certificates.ensure(secrets, "tierwise-system", NOW + timedelta(days=61))
    assert renewed.certificate != first.certificate
    assert renewed.ca == first.ca
    assert secrets.writes == 5  # server and client, not the authority


@pytest.mark.parametrize("damage", [{}, {"tls.crt": "bm9uZQ=="}, {"tls.crt": "***"}])
async def test_a_damaged_secret_names_its_remedy(damage: dict[str, str]) -> None:
    secrets = FakeSecrets()
    await certificates.ensure(secrets, "tierwise-system", NOW)
    secrets.held["tierwise-xds-server"]["data"] = damage
    with pytest.raises(certificates.CertificateError, match="delete it"):
        await certificates.ensure(secrets, "tierwise-system", NOW)


def test_keys_do_not_show() -> None:
    assert "PRIVATE" not in repr(certificates.issue_authority(NOW))


async def handshake(server: certificates.Material, client: certificates.Material, trusted: bytes, tmp: Path) -> bool:
    def context(purpose: ssl.Purpose, material: certificates.Material, name: str) -> ssl.SSLContext:
        made = ssl.create_default_context(purpose, cadata=trusted.decode())
        made.verify_mode = ssl.CERT_REQUIRED
        (tmp / f"{name}.pem").write_bytes(material.certificate + material.key)
        made.load_cert_chain(tmp / f"{name}.pem")
        return made

    done = asyncio.Event()

    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"ok")
        await writer.drain()
        writer.close()
        done.set()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context(ssl.Purpose.CLIENT_AUTH, server, "server"))
    port = listener.sockets[0].getsockname()[1]
    try:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1",
            port,
            ssl=context(ssl.Purpose.SERVER_AUTH, client, "client"),
            server_hostname="tierwise-xds.tierwise-system.svc.cluster.local",
        )
        answer = await asyncio.wait_for(reader.read(), 5)
        writer.close()
    except (ssl.SSLError, ConnectionError):
        return False
    finally:
        listener.close()
    return answer == b"ok"


async def test_only_a_pair_of_the_same_authority_is_let_in(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    ours, others = certificates.issue_authority(now), certificates.issue_authority(now)
    names = certificates.server_names("tierwise-system")
    server = certificates.issue(ours, "tierwise-xds", names, now, server=True)
    client = certificates.issue(ours, "gateway", ("gateway",), now, server=False)
    stranger = certificates.issue(others, "gateway", ("gateway",), now, server=False)
    assert await handshake(server, client, ours.certificate, tmp_path)
    assert not await handshake(server, stranger, ours.certificate, tmp_path)
