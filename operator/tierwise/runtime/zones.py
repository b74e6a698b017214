"""How many gateways are ready, and in which zones: they share limits, and prefer near replicas."""

import asyncio
import random
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import structlog

from tierwise.adapters import kinds
from tierwise.adapters.cluster import Cluster, ClusterError
from tierwise.render import labels
from tierwise.runtime.store import Store

log = structlog.get_logger(__name__)

SELECTOR = f"{labels.COMPONENT_LABEL}=gateway"
ZONE_LABEL = "topology.kubernetes.io/zone"
"""Of a Pod since Kubernetes 1.35: copied from its node when it is bound. The gateway takes its own zone from there."""
INTERVAL_SECONDS = 10.0


class Zones:
    """Keeps the store's count of gateways by zone current, in every operator replica: all render the same bytes."""

    def __init__(self, cluster: Cluster, store: Store, *, namespace: str) -> None:
        self._cluster = cluster
        self._store = store
        self._namespace = namespace

    async def once(self) -> None:
        """One look. Without an answer what was known stays."""
        try:
            listing = await self._cluster.list(kinds.POD, namespace=self._namespace, label_selector=SELECTOR)
        except ClusterError as error:
            log.warning("cannot list the gateways' Pods", error=str(error))
            return
        self._store.put_gateway_zones(counted(listing.items))

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            await self.once()
            await asyncio.sleep(INTERVAL_SECONDS * (0.8 + 0.4 * random.random()))  # noqa: S311 - jitter


def counted(pods: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Zone (empty: unknown) -> ready gateways, sorted."""
    found = Counter((pod["metadata"].get("labels") or {}).get(ZONE_LABEL, "") for pod in pods if _takes_requests(pod))
    return dict(sorted(found.items()))


def _takes_requests(pod: Mapping[str, Any]) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or ()
    ready = any(each.get("type") == "Ready" and each.get("status") == "True" for each in conditions)
    return ready and not pod["metadata"].get("deletionTimestamp")
