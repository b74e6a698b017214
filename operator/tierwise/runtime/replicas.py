"""Which operator replicas run: the Pods of our own Deployment. Entries in a status by others are of dead ones."""

import asyncio
import random

import structlog

from tierwise.adapters import kinds
from tierwise.adapters.cluster import Cluster, ClusterError
from tierwise.render import labels
from tierwise.runtime.store import Store

log = structlog.get_logger(__name__)

SELECTOR = f"{labels.COMPONENT_LABEL}=operator"
INTERVAL_SECONDS = 20.0
GONE = ("Succeeded", "Failed")


class Replicas:
    """Keeps the store's set of live replicas current while this replica decides."""

    def __init__(self, cluster: Cluster, store: Store, *, namespace: str, identity: str) -> None:
        self._cluster = cluster
        self._store = store
        self._namespace = namespace
        self._identity = identity

    async def once(self) -> None:
        """One look. Outside a cluster, or without an answer, nobody is taken for dead."""
        try:
            listing = await self._cluster.list(kinds.POD, namespace=self._namespace, label_selector=SELECTOR)
        except ClusterError as error:
            log.warning("cannot list the operator's Pods", error=str(error))
            return
        live = frozenset(
            str(pod["metadata"]["name"]) for pod in listing.items if (pod.get("status") or {}).get("phase") not in GONE
        )
        if self._identity not in live:
            return  # this one is no Pod of that Deployment: it cannot tell who else there is
        self._store.put_live_replicas(live)

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            await self.once()
            await asyncio.sleep(INTERVAL_SECONDS * (0.8 + 0.4 * random.random()))  # noqa: S311 - jitter
