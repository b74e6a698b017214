"""Complete lists: the first ones before anything is decided, later ones to find what a watch has missed."""

import asyncio
import random
from collections.abc import Callable

import structlog

from tierwise.adapters import kinds
from tierwise.adapters.cluster import Cluster, ClusterError, NotFoundError
from tierwise.adapters.kinds import Kind
from tierwise.runtime import objects
from tierwise.runtime.store import Store

log = structlog.get_logger(__name__)

FIRST_RETRY_SECONDS = (0.5, 1.0, 2.0, 5.0)


class Relister:
    """Lists every kind in every namespace that is served.

    Args:
        cluster, store: from and to where.
        namespaces: those to list; empty: all at once.
        interval_seconds: between two rounds, give or take a fifth.
        ghosts: told how many objects had gone unnoticed.
    """

    def __init__(
        self,
        cluster: Cluster,
        store: Store,
        *,
        namespaces: tuple[str, ...],
        interval_seconds: float,
        ghosts: Callable[[Kind, int], None] = lambda _kind, _count: None,
    ) -> None:
        self._cluster = cluster
        self._store = store
        self._scopes: tuple[str | None, ...] = namespaces or (None,)
        self._interval_seconds = interval_seconds
        self._ghosts = ghosts
        self._wake = asyncio.Event()

    def hurry(self) -> None:
        """List again soon: a watch was interrupted."""
        self._wake.set()

    async def first(self) -> None:
        """List all kinds once, trying until each has succeeded."""
        waiting = list(kinds.WATCHED)
        attempt = 0
        while waiting:
            failed: list[Kind] = []
            for kind in waiting:
                try:
                    await self._list(kind)
                except NotFoundError:
                    log.warning(
                        "the API server does not know this kind yet: apply the CustomResourceDefinitions",
                        kind=kind.name,
                    )
                    failed.append(kind)
                except ClusterError as error:
                    log.warning("cannot list", kind=kind.name, error=str(error))
                    failed.append(kind)
            waiting = failed
            if waiting:
                delay = FIRST_RETRY_SECONDS[min(attempt, len(FIRST_RETRY_SECONDS) - 1)]
                attempt += 1
                await asyncio.sleep(delay * (0.5 + random.random()))  # noqa: S311 - jitter

    async def run(self) -> None:
        """List again and again, until cancelled."""
        while True:
            pause = self._interval_seconds * (0.8 + 0.4 * random.random())  # noqa: S311 - jitter
            try:
                async with asyncio.timeout(pause):
                    await self._wake.wait()
            except TimeoutError:
                pass
            else:
                self._wake.clear()
                await asyncio.sleep(1.0)
            for kind in kinds.WATCHED:
                try:
                    await self._list(kind)
                except ClusterError as error:
                    log.warning("cannot list", kind=kind.name, error=str(error))

    async def _list(self, kind: Kind) -> None:
        selector = None if kind.ours else objects.SELECTOR
        for namespace in self._scopes:
            listing = await self._cluster.list(kind, namespace=namespace, label_selector=selector)
            ghosts = self._store.relist(kind, namespace, listing)
            if ghosts:
                self._ghosts(kind, ghosts)
        self._store.listed(kind)
