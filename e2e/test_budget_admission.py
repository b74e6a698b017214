"""What an API server says to who applies a budget, a tier or a policy that does not fit; and who may edit budgets."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

import support
from tierwise.devcluster.cluster import Cluster

NAMESPACE = "thrifty"


@pytest.fixture(scope="module", autouse=True)
def namespace(platform: Cluster) -> Iterator[None]:
    platform.kubectl("create", "namespace", NAMESPACE)
    yield
    platform.kubectl("delete", "namespace", NAMESPACE, "--wait=false")


def said(platform: Cluster, manifest: dict[str, Any]) -> str:
    """Warnings of an apply."""
    done = platform.kubectl("apply", "-n", NAMESPACE, "-f", "-", input_text=json.dumps(manifest))
    return "\n".join(line for line in done.stderr.splitlines() if line.startswith("Warning:"))


def budget(ceiling: str, action: str = "Deny", **spec: Any) -> dict[str, Any]:
    ladder = [{"atPercent": 100, "action": action}]
    return {
        "apiVersion": support.API,
        "kind": "NamespaceBudget",
        "metadata": {"name": "ceiling"},
        "spec": {"ceiling": ceiling, "ladder": ladder, **spec},
    }


def show(platform: Cluster, **status: Any) -> None:
    patch = json.dumps({"status": status})
    platform.kubectl("patch", "nbud", "ceiling", "-n", NAMESPACE, "--subresource=status", "--type=merge", "-p", patch)


def test_warnings_have_figures_and_stop_nothing(platform: Cluster) -> None:
    support.until(
        lambda: "no rung of the ladder denies" in said(platform, budget("1000", "Notify")), seconds=30, what="a warning"
    )
    assert said(platform, budget("1000")) == ""
    free = support.in_cluster_tier("free")
    free["spec"]["inCluster"].pop("price")
    free["spec"]["inCluster"]["replicas"] = {"min": 0, "max": 1}
    support.until(lambda: "has no price in USD" in said(platform, free), seconds=30, what="a warning about the price")
    rule = support.policy("assistant", [{"name": "free"}])
    rule["metadata"].pop("namespace", None)
    for manifest, text in (
        (budget("400"), "400 USD is below what is already spent in this period: 812 USD"),
        (budget("1100"), "1100 USD is below what is expected to be spent by the period's end: 1400 USD"),
        (rule, "spent 812, expected by the period's end 1400 of 1100 USD"),
    ):
        support.until(
            lambda manifest=manifest, text=text: text in with_status(platform, manifest),
            seconds=40,
            what=f"the warning: {text}",
            every=2.0,
        )


def with_status(platform: Cluster, manifest: dict[str, Any]) -> str:
    """Warnings, with a status that the operator did not write; it soon writes its own."""
    show(platform, spent="812", forecast="1400")
    return said(platform, manifest)


@pytest.mark.parametrize(
    ("role", "verb", "kind", "may"),
    [
        ("edit", "update", "modeltiers", "yes"),
        ("edit", "create", "routingpolicies", "yes"),
        ("edit", "patch", "consumers", "yes"),
        ("edit", "get", "namespacebudgets", "yes"),
        ("edit", "update", "namespacebudgets", "no"),
        ("edit", "patch", "namespacebudgets/status", "no"),
        ("edit", "patch", "modeltiers/status", "no"),
        ("admin", "delete", "namespacebudgets", "no"),
        ("admin", "delete", "routingpolicies", "yes"),
        ("view", "list", "namespacebudgets", "yes"),
        ("view", "create", "modeltiers", "no"),
        ("tierwise-budget-admin", "update", "namespacebudgets", "yes"),
        ("tierwise-budget-admin", "patch", "namespacebudgets/status", "no"),
        ("tierwise-budget-admin", "update", "modeltiers", "no"),
    ],
)
def test_application_teams_edit_tiers_and_policies_and_only_the_platform_team_budgets(
    platform: Cluster, role: str, verb: str, kind: str, may: str
) -> None:
    user = f"user-of-{role}"
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": user},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": [{"kind": "User", "name": user, "apiGroup": "rbac.authorization.k8s.io"}],
    }
    support.apply(platform, NAMESPACE, binding)
    resource, _, sub = kind.partition("/")
    asked = ["auth", "can-i", verb, f"{resource}.tierwise.dev", "-n", NAMESPACE, "--as", user]
    asked += ["--subresource", sub] if sub else []

    def answer() -> str:
        done = platform.kubectl(*asked, check=False)
        return done.stdout.strip()

    # A binding, and the aggregation of roles, take a moment to be seen.
    support.until(lambda: answer() == may, seconds=20, what=f"{role} may {verb} {kind}: {may}")
