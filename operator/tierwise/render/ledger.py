"""The ConfigMap that keeps a namespace's accounts whole: what `tierwise costs` reads, and what a restart goes on from.

A status holds sums by tier only: detail by hour, class and consumer would make it hundreds of kilobytes. The shell
signs what is rendered here; whoever may write ConfigMaps could else change what a namespace has spent.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from tierwise.api.meta import API_VERSION
from tierwise.api.namespace_budget import NamespaceBudget
from tierwise.core import kept
from tierwise.core.kept import Kept
from tierwise.render import labels

NAME = "tierwise-ledger"
"""Name of the ConfigMap in each namespace that has budgets."""


def config_map(namespace: str, accounts: Iterable[tuple[NamespaceBudget, Kept]]) -> dict[str, Any]:
    """The ConfigMap: one entry per budget, by its name. It goes with the last budget."""
    found = sorted(accounts, key=lambda each: each[0].metadata.name)
    room = kept.MAX_BYTES // max(1, len(found))
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": NAME,
            "namespace": namespace,
            "labels": {"app.kubernetes.io/managed-by": labels.MANAGED_BY},
            "ownerReferences": [_owner(budget) for budget, _ in found],
        },
        "data": {budget.metadata.name: kept.pack(account, max_bytes=room) for budget, account in found},
    }


def _owner(budget: NamespaceBudget) -> dict[str, Any]:
    metadata = budget.metadata
    return {"apiVersion": API_VERSION, "kind": "NamespaceBudget", "name": metadata.name, "uid": metadata.uid}


def entries(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Budget name -> packed account."""
    return {str(name): str(text) for name, text in (manifest.get("data") or {}).items()}
