"""Secrets that tiers refer to, read one by one by name: the operator has no right to list or watch Secrets.

Values go into the store and nowhere else; what is logged is the name.
"""

import asyncio
import base64
import binascii
import contextlib
import random
from collections.abc import Mapping
from typing import Any

import structlog

from tierwise.adapters.cluster import Cluster, ClusterError, ForbiddenError, NotFoundError
from tierwise.core.world import Key, SecretData
from tierwise.runtime.store import Store

log = structlog.get_logger(__name__)

REFRESH_SECONDS = 15.0
# At most this many reads per second on average, however many Secrets there are.
READS_PER_SECOND = 20.0
PARALLEL = 4


class SecretReader:
    """Keeps the referenced Secrets in the store current."""

    def __init__(self, cluster: Cluster, store: Store, *, refresh_seconds: float = REFRESH_SECONDS) -> None:
        self._cluster = cluster
        self._store = store
        self._refresh_seconds = refresh_seconds
        self._changed = asyncio.Event()
        self._known: frozenset[Key] = frozenset()
        self._limit = asyncio.Semaphore(PARALLEL)

    def poke(self) -> None:
        """Something changed; reads at once if it was a reference."""
        if self._store.secret_references() != self._known:
            self._changed.set()

    async def first(self) -> None:
        """Read all once, so that the first configuration carries its credentials. Failures are left to `run`."""
        await self._read(self._store.secret_references())

    async def run(self) -> None:
        """Read again and again, until cancelled."""
        while True:
            pause = max(self._refresh_seconds, len(self._known) / READS_PER_SECOND)
            new_only = False
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause * (0.8 + 0.4 * random.random())):  # noqa: S311 - jitter
                    await self._changed.wait()
                    new_only = True
            self._changed.clear()
            wanted = self._store.secret_references()
            await self._read(wanted - self._known if new_only else wanted)

    async def _read(self, keys: frozenset[Key]) -> None:
        self._known = self._store.secret_references()
        self._store.drop_secrets(self._known)
        await asyncio.gather(*(self._read_one(key) for key in sorted(keys)))

    async def _read_one(self, key: Key) -> None:
        async with self._limit:
            try:
                manifest = await self._cluster.secret(key.namespace, key.name)
            except NotFoundError:
                self._lost(key, "not found")
            except ForbiddenError as error:
                self._lost(key, str(error))
            except ClusterError as error:
                # Unknown is not gone: the value that is held stays.
                log.warning("cannot read a Secret", secret=str(key), error=str(error))
            else:
                if key in self._known:
                    self._store.put_secret(key, decode(manifest))

    def _lost(self, key: Key, why: str) -> None:
        if key in self._store.secrets():
            log.warning("a Secret is gone", secret=str(key), why=why)
            self._store.put_secret(key, None)


def decode(manifest: Mapping[str, Any]) -> SecretData:
    """A Secret's data; values that are no base64 are left out."""
    data: dict[str, bytes] = {}
    for name, value in sorted((manifest.get("data") or {}).items()):
        with contextlib.suppress(binascii.Error, ValueError, TypeError):
            data[str(name)] = base64.b64decode(value, validate=True)
    version = str((manifest.get("metadata") or {}).get("resourceVersion", ""))
    return SecretData(data=data, resource_version=version)
