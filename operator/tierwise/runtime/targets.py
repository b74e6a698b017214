"""Whose signals are asked for, and under which names their engines expose them."""

from dataclasses import asdict

from tierwise.adapters.queries import EngineMetrics, Targets
from tierwise.api.in_cluster import InCluster
from tierwise.core import accounts, engines
from tierwise.core.world import World


def metrics_of(tier: InCluster) -> EngineMetrics:
    """The engine's names, those that the tier states in their place."""
    return EngineMetrics(**asdict(engines.metric_names(tier)))


def targets_of(world: World, *, recover: bool) -> Targets:
    """All tiers and classes of the world; with `recover`, usage is asked for from the ledgers' checkpoints on."""
    in_cluster = {}
    external = set()
    for key, tier in world.tiers.items():
        if tier.spec.in_cluster is not None:
            in_cluster[key.namespace, key.name] = metrics_of(tier.spec.in_cluster)
        else:
            external.add((key.namespace, key.name))
    classes = {
        (key.namespace, key.name, one.name): tuple(reference.name for reference in one.tiers)
        for key, policy in world.policies.items()
        for one in policy.spec.classes
    }
    return Targets(
        in_cluster=in_cluster,
        external=frozenset(external),
        classes=classes,
        ledger_since=checkpoints(world) if recover else {},
        period_edges=frozenset(
            edge.timestamp() for account in world.ledger.accounts.values() for edge in (account.start, account.end)
        ),
    )


def checkpoints(world: World) -> dict[str, tuple[float, ...]]:
    """Namespace -> until when the accounts of its budgets have counted, Unix seconds, ascending.

    Empty where no budget has an account. Else namespaces without one count from now on, like those of a fresh cluster.
    """
    found: dict[str, set[float]] = {}
    for key, budget in world.budgets.items():
        moments = accounts.unread(world, budget)
        if moments:
            found.setdefault(key.namespace, set()).update(moment.timestamp() for moment in moments)
    if not found:
        return {}
    fresh = {key.namespace: {world.now.timestamp()} for key in world.tiers}
    return {namespace: tuple(sorted(moments)) for namespace, moments in (fresh | found).items()}
