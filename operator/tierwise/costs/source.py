"""Where accounts are read from: a cluster, with the reader's own rights, or manifests in files."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from tierwise.adapters import cluster as adapter
from tierwise.adapters import kinds
from tierwise.adapters.cluster import Cluster, ClusterError
from tierwise.api.base import InvalidObject
from tierwise.api.namespace_budget import NamespaceBudget
from tierwise.core import kept
from tierwise.costs.report import ReportError, Source, from_status
from tierwise.render import ledger
from tierwise.runtime import objects

PERIODS = ("Month", "Week", "Day")


async def from_cluster(kubeconfig: Path | None, context: str | None, namespace: str | None) -> list[dict[str, Any]]:
    """Budgets and ledgers of one namespace, or of all.

    Raises:
        ClusterError: it can not be reached, or they can not be read.
    """
    configuration = await adapter.configure(kubeconfig, context)
    async with adapter.connect(configuration) as cluster:
        found = [dict(item) for item in (await cluster.list(kinds.NAMESPACE_BUDGET, namespace=namespace)).items]
        return found + await _ledgers(cluster, namespace)


async def _ledgers(cluster: Cluster, namespace: str | None) -> list[dict[str, Any]]:
    listed = await cluster.list(kinds.CONFIG_MAP, namespace=namespace, label_selector=objects.SELECTOR)
    return [dict(item) for item in listed.items if item["metadata"]["name"] == ledger.NAME]


def from_files(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """Budgets and ledgers among manifests: what `kubectl get nbud,cm -A -o yaml` prints, or single objects.

    Raises:
        ReportError: a file can not be read.
    """
    found: list[dict[str, Any]] = []
    for path in paths:
        try:
            text = path.read_text(encoding="utf-8")
            documents = [json.loads(text)] if path.suffix == ".json" else list(yaml.safe_load_all(text))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise ReportError(f"{path}: {error}") from error
        for document in documents:
            items = document.get("items") if isinstance(document, Mapping) and "items" in document else [document]
            found += [dict(item) for item in items or () if isinstance(item, Mapping)]
    return found


def sources(manifests: Iterable[Mapping[str, Any]], budget: str | None = None) -> tuple[list[Source], list[str]]:
    """One source per namespace, and what could not be read, in words.

    Of several budgets in a namespace that of the longest period counts, or the named one: each has the whole spend.
    """
    manifests = list(manifests)
    ledgers = {
        objects.key_of(one).namespace: ledger.entries(one)
        for one in manifests
        if one.get("kind") == kinds.CONFIG_MAP.name and objects.key_of(one).name == ledger.NAME
    }
    by_namespace: dict[str, list[Source]] = {}
    notes: list[str] = []
    for one in manifests:
        key = objects.key_of(one)
        if one.get("kind") != kinds.NAMESPACE_BUDGET.name or budget not in {None, key.name}:
            continue
        try:
            found = _source(one, ledgers.get(key.namespace, {}).get(key.name))
        except (InvalidObject, kept.UnreadableAccount) as error:
            notes.append(f"{key}: {error}")
            continue
        if found is None:
            notes.append(f"{key}: nothing has been counted yet")
            continue
        if not found.whole:
            notes.append(f"{key}: there is no ledger beside its status: sums by tier are all that is known")
        by_namespace.setdefault(key.namespace, []).append(found)
    return [min(each, key=_first) for _, each in sorted(by_namespace.items())], notes


def _first(source: Source) -> tuple[int, str]:
    return PERIODS.index(source.kept.period), source.kept.name


def _source(body: Mapping[str, Any], text: str | None) -> Source | None:
    if text is None:
        return from_status(objects.key_of(body).namespace, body)
    parsed = NamespaceBudget.parse(body)
    found = kept.unpack(text)
    if found.uid != parsed.metadata.uid:
        return from_status(objects.key_of(body).namespace, body)
    checkpoint = parsed.status.checkpoint
    return Source(
        objects.key_of(body).namespace,
        found,
        spent=parsed.status.spent,
        spent_at=checkpoint.time if checkpoint is not None else None,
    )


__all__ = ["ClusterError", "from_cluster", "from_files", "sources"]
