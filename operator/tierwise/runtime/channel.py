"""The certificate of the gateway channel: from Secrets that the operator keeps, or files that someone else keeps."""

import asyncio
import hashlib
import hmac
import random
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import structlog
from cryptography import x509

from tierwise.adapters import certificates
from tierwise.adapters.certificates import Material
from tierwise.adapters.cluster import Cluster, ClusterError
from tierwise.errors import TierwiseError

log = structlog.get_logger(__name__)

CHECK_SECONDS = 3600.0
FILES_SECONDS = 60.0
RETRY_SECONDS = (0.5, 1.0, 2.0, 5.0, 15.0)


class ChannelError(TierwiseError):
    """There is no usable certificate for the gateway channel."""


class Channel:
    """Keeps the server's certificate current.

    Args:
        cluster: where the Secrets are.
        namespace: the operator's own.
        folder: with ca.crt, tls.crt and tls.key; None: Secrets, which the operator makes and renews.
        now: aware UTC clock.
    """

    def __init__(self, cluster: Cluster, *, namespace: str, folder: Path | None, now: Callable[[], datetime]) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._folder = folder
        self._now = now
        self._material: Material | None = None
        self._signing_key = b""

    def material(self) -> Material:
        """What the server shows at the next handshake."""
        if self._material is None:
            raise ChannelError("no certificate yet")
        return self._material

    def signing_key(self) -> bytes:
        """A key that all replicas share and nobody else can read; empty before `first`."""
        return self._signing_key

    async def first(self) -> None:
        """Get a certificate, trying until there is one."""
        attempt = 0
        while not await self._load():
            delay = RETRY_SECONDS[min(attempt, len(RETRY_SECONDS) - 1)]
            attempt += 1
            await asyncio.sleep(delay * (0.5 + random.random()))  # noqa: S311 - jitter

    async def run(self) -> None:
        """Renew in time, until cancelled. The one in use stays while a new one cannot be had."""
        while True:
            pause = CHECK_SECONDS if self._folder is None else FILES_SECONDS
            await asyncio.sleep(pause * (0.8 + 0.4 * random.random()))  # noqa: S311 - jitter
            await self._load()

    async def _load(self) -> bool:
        try:
            found = await (self._from_secrets() if self._folder is None else asyncio.to_thread(self._from_files))
        except (ClusterError, certificates.CertificateError, ChannelError) as error:
            log.warning("no certificate for the gateway channel", error=str(error))
            return False
        if self._material is not None and found.certificate != self._material.certificate:
            log.info("the gateway channel has a new certificate", not_after=found.not_after.isoformat())
        self._material = found
        return True

    async def _from_secrets(self) -> Material:
        found = await certificates.ensure(self._cluster, self._namespace, self._now())
        if not self._signing_key:
            authority = certificates.read(await self._cluster.secret(self._namespace, certificates.AUTHORITY))
            self._signing_key = derived(authority.key)
        return found

    def _from_files(self) -> Material:
        folder = self._folder if self._folder is not None else Path()
        try:
            authority, certificate, key = ((folder / name).read_bytes() for name in ("ca.crt", "tls.crt", "tls.key"))
            leaf = x509.load_pem_x509_certificate(certificate)
        except (OSError, ValueError) as error:
            raise ChannelError(f"{folder}: {error}") from error
        self._signing_key = derived(key)
        return Material(
            ca=authority,
            certificate=certificate,
            key=key,
            not_before=leaf.not_valid_before_utc,
            not_after=leaf.not_valid_after_utc,
        )


def derived(key: bytes) -> bytes:
    """A key for signatures out of a private key, which is itself never used for them."""
    return hmac.new(key, b"tierwise last-good configuration", hashlib.sha256).digest()
