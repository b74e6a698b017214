"""The present state of a cluster, and demand from its Prometheus: read only, with the reader's own rights."""

import asyncio
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

from tierwise.adapters import cluster as adapter
from tierwise.adapters import kinds, prometheus, queries
from tierwise.adapters.cluster import Cluster, NotFoundError
from tierwise.core.world import World
from tierwise.preview.load import MODELS
from tierwise.preview.metrics import Metrics, from_signals
from tierwise.preview.state import CHILDREN, State
from tierwise.runtime import objects, served
from tierwise.runtime.targets import targets_of

MAX_AGE_SECONDS = 120.0
"""Samples older than this are unknown."""


async def present(
    kubeconfig: Path | None, context: str | None, namespaces: Iterable[str], operator_namespace: str
) -> tuple[State, dict[str, str], str]:
    """Objects of these namespaces, the operator's environment, and the cluster's address.

    Raises:
        ClusterError: it can not be reached or read.
    """
    configuration = await adapter.configure(kubeconfig, context)
    async with adapter.connect(configuration) as cluster:
        state = State()
        for namespace in sorted(set(namespaces)):
            await _read(cluster, namespace, state)
        environment = await served.operators_environment(cluster, operator_namespace)
    return state, environment, str(configuration.host)


async def _read(cluster: Cluster, namespace: str, state: State) -> None:
    for kind in kinds.WATCHED:
        if kind.ours and kind.name in MODELS:
            try:
                listing = await cluster.list(kind, namespace=namespace)
            except NotFoundError:
                continue  # the definitions are not installed: then there is nothing of ours
            for item in listing.items:
                state.objects[kind.name, namespace, str(item["metadata"]["name"])] = objects.stripped(item)
        elif kind in CHILDREN:
            listing = await cluster.list(kind, namespace=namespace, label_selector=objects.SELECTOR)
            state.children += [objects.stripped(item) for item in listing.items]


def demand(url: str, world: World, now: datetime, *, token_file: Path | None = None, selector: str = "") -> Metrics:
    """Demand of all classes of a world, as Prometheus has it now.

    Raises:
        PrometheusError: it does not answer.
    """
    targets = targets_of(world, recover=False)
    reader = prometheus.Prometheus(
        prometheus.connection(url, token_file=token_file),
        gateway_selector=selector or queries.DEFAULT_GATEWAY_SELECTOR,
    )
    try:
        signals = asyncio.run(reader.read(targets, now))
    finally:
        reader.close()
    return from_signals(signals, targets.classes, f"Prometheus at {url}", max_age_seconds=MAX_AGE_SECONDS)
