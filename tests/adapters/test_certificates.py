import asyncio
import copy
import itertools
import ssl
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

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


async def test_a_new_authority_is_trusted_everywhere_before_it_signs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No moment of the change-over at which a gateway and an operator that have read different passes part."""
    secrets, passes = FakeSecrets(), []
    start = datetime.now(UTC) - certificates.AUTHORITY_LIFE * certificates.RENEW_AT - timedelta(hours=1)
    authority = certificates.issue_authority(start)
    secrets._write(certificates._manifest("tierwise-system", "tierwise-xds-ca", authority))
    # Leaves that are due for renewal at the same time: the harder case.
    for name, server in (("tierwise-xds-client", False), ("tierwise-xds-server", True)):
        names = certificates.server_names("tierwise-system") if server else ("tierwise-gateway",)
        old = certificates.issue(authority, name, names, datetime.now(UTC) - timedelta(days=70), server=server)
        secrets._write(certificates._manifest("tierwise-system", name, old))

    def held() -> tuple[certificates.Material, certificates.Material]:
        return tuple(certificates.read(secrets.held[f"tierwise-xds-{side}"]) for side in ("server", "client"))  # type: ignore[return-value]  # two of them

    passes.append(held())
    await certificates.ensure(secrets, "tierwise-system", datetime.now(UTC))
    passes.append(held())
    # Another replica's pass, a moment later and up to hours later: gateways may not have read what to trust.
    for later in (timedelta(0), certificates.SETTLE - timedelta(minutes=1)):
        await certificates.ensure(secrets, "tierwise-system", datetime.now(UTC) + later)
        assert held() == passes[1], "not settled yet"
    monkeypatch.setattr(certificates, "SETTLE", timedelta(0))
    for _ in range(2):
        await certificates.ensure(secrets, "tierwise-system", datetime.now(UTC))
        passes.append(held())
    assert passes[1][0].certificate == passes[0][0].certificate, "the first pass changes trust only"
    assert passes[1][0].ca.count(b"BEGIN CERTIFICATE") == 2
    assert passes[2][0].certificate != passes[1][0].certificate, "the second one signs"
    assert passes[3] == passes[2], "then nothing more changes"
    for (server, _), (_, client) in [*zip(passes, passes, strict=True), *itertools.pairwise(passes)]:
        assert await handshake(server, client, server.ca, tmp_path, trusted_by_client=client.ca)
    for (_, client), (server, _) in itertools.pairwise(passes):
        assert await handshake(server, client, server.ca, tmp_path, trusted_by_client=client.ca)


async def test_an_authority_that_was_deleted_is_replaced_with_all_that_it_signed() -> None:
    secrets = FakeSecrets()
    first = await certificates.ensure(secrets, "tierwise-system", NOW)
    del secrets.held["tierwise-xds-ca"]
    second = await certificates.ensure(secrets, "tierwise-system", NOW)
    assert second.certificate != first.certificate
    client = certificates.read(secrets.held["tierwise-xds-client"])
    assert client.ca == second.ca != first.ca


async def test_a_server_gets_the_names_that_this_version_wants() -> None:
    secrets = FakeSecrets()
    await certificates.ensure(secrets, "tierwise-system", NOW)
    authority = certificates.read(secrets.held["tierwise-xds-ca"])
    old = certificates.issue(authority, "tierwise-xds", ("old-name",), NOW, server=True)
    secrets._write(certificates._manifest("tierwise-system", "tierwise-xds-server", old))
    renewed = await certificates.ensure(secrets, "tierwise-system", NOW)
    certificate = x509.load_pem_x509_certificate(renewed.certificate)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "tierwise-xds.tierwise-system.svc.cluster.local" in names.get_values_for_type(x509.DNSName)


async def test_replicas_that_race_to_renew_end_with_one_set() -> None:
    secrets = FakeSecrets()
    await certificates.ensure(secrets, "tierwise-system", NOW)
    late = NOW + timedelta(days=61)
    found = await asyncio.gather(*(certificates.ensure(secrets, "tierwise-system", late) for _ in range(4)))
    assert len({material.certificate for material in found}) == 1
    assert secrets.writes == 5


@pytest.mark.parametrize("damage", [{}, {"tls.crt": "bm9uZQ=="}, {"tls.crt": "***"}, {"tls.key": "bm9uZQ=="}])
async def test_a_damaged_secret_names_its_remedy(damage: dict[str, str]) -> None:
    secrets = FakeSecrets()
    await certificates.ensure(secrets, "tierwise-system", NOW)
    data = secrets.held["tierwise-xds-server"]["data"]
    secrets.held["tierwise-xds-server"]["data"] = {**data, **damage} if damage else {}
    with pytest.raises(certificates.CertificateError, match="delete it"):
        await certificates.ensure(secrets, "tierwise-system", NOW)


def test_keys_do_not_show() -> None:
    assert "PRIVATE" not in repr(certificates.issue_authority(NOW))


async def handshake(
    server: certificates.Material,
    client: certificates.Material,
    trusted: bytes,
    tmp: Path,
    *,
    trusted_by_client: bytes | None = None,
) -> bool:
    def context(purpose: ssl.Purpose, material: certificates.Material, name: str) -> ssl.SSLContext:
        roots = trusted_by_client if name == "client" and trusted_by_client is not None else trusted
        made = ssl.create_default_context(purpose, cadata=roots.decode())
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
