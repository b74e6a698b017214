"""One development cluster for all whole-system tests of a session."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from tierwise.devcluster import build, install
from tierwise.devcluster import cluster as clusters

TAIL_LINES = 15
# Whole systems on a busy machine; a test may ask for more by its own mark.
TIMEOUT_SECONDS = 300


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent) and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TIMEOUT_SECONDS))
    # Whole modules in the order in which the one cluster gets what they need: nothing is taken away again.
    stages: dict[Path, int] = {}
    for item in items:
        stages[item.path] = max(stages.get(item.path, 0), _stage(item))
    items.sort(key=lambda item: stages[item.path])


def _stage(item: pytest.Item) -> int:
    names = getattr(item, "fixturenames", ())
    # `fresh` and `guarded` are the platform, too.
    return 1 if "fresh" in names else 3 if "guarded" in names else 2 if "platform" in names else 0


def pytest_collection_finish(session: pytest.Session) -> None:
    """Build the cluster's programs before any test's time runs."""
    wanted = any("cluster" in getattr(item, "fixturenames", ()) for item in session.items)
    if wanted and not session.config.option.collectonly:
        build.binaries(Console(stderr=True))


@pytest.fixture(scope="session")
def console() -> Console:
    return Console(stderr=True)


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest, console: Console) -> Iterator[clusters.Cluster]:
    """A running cluster of its own name; if a test failed, the ends of its logs are printed before it goes."""
    started = clusters.up(f"e2e-{os.getpid()}", console=console)
    try:
        yield started
    finally:
        if request.session.testsfailed:
            _print_logs(started, console)
        if os.environ.get("TIERWISE_E2E_KEEP"):
            console.print(f"kept: export KUBECONFIG={started.kubeconfig}")
        else:
            started.down()


@pytest.fixture(scope="session")
def platform(cluster: clusters.Cluster) -> clusters.Cluster:
    """The cluster with Tierwise installed from its chart, as a user would: two operators, two gateways."""
    install.install(cluster)
    return cluster


@pytest.fixture(scope="session")
def fresh(platform: clusters.Cluster) -> clusters.Cluster:
    """The platform on which nobody has done anything yet: modules that ask for it run before all others on it."""
    return platform


@pytest.fixture(scope="session")
def guarded(platform: clusters.Cluster) -> clusters.Cluster:
    """The platform from now on with callers that have to prove who they are; modules that ask for it run last."""
    install.install(platform, values={"gateway": {"authentication": {"mode": "Required"}}})
    return platform


def _print_logs(started: clusters.Cluster, console: Console) -> None:
    console.print(
        started.kubectl("get", "pods,events", "-A", check=False).stdout, markup=False, highlight=False, soft_wrap=True
    )
    for path in sorted(started.state.logs.rglob("*.log")):
        tail = _tail(path)
        if tail:
            console.rule(str(path.relative_to(started.state.logs)))
            console.print(tail, markup=False, highlight=False, soft_wrap=True)


def _tail(path: Path) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-TAIL_LINES:])
