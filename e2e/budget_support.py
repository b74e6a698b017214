"""What the tests of budgets share: a provider that bills, planned load, and the independent account to compare with.

Figures come from clients (`metered_load.py`) and from the upstream's own log (`metered_provider.py`); what the product
says is compared with them, never with itself.
"""

import contextlib
import itertools
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import support
from tierwise.devcluster import install
from tierwise.devcluster.cluster import Cluster
from tierwise.devcluster.components import NODE_ADDRESS

HERE = Path(__file__).parent
MILLION = Decimal(1_000_000)
PROMPT = "What does the contract say about its term and how it ends?"
TOKENS = 20
# On the development cluster (devcluster.install): Prometheus scrapes every second, the operator reads every two.
SCRAPE_SECONDS = 1.0
READ_SECONDS = 2.0 * 1.1
# Decision and its way to the gateways; milliseconds on a quiet machine.
CARRY_OUT_SECONDS = 1.0
REACTION_SECONDS = 2 * SCRAPE_SECONDS + READ_SECONDS + CARRY_OUT_SECONDS
"""From an answer's end to its effect on the gateways at the latest: scraped, read, planned, delivered."""


@dataclass(frozen=True)
class Price:
    """Per million tokens."""

    input: Decimal
    output: Decimal

    def of(self, attempt: dict[str, Any]) -> Decimal:
        """What the provider bills for an attempt by its own log."""
        return (attempt["prompt"] * self.input + attempt["completion"] * self.output) / MILLION

    def manifest(self) -> dict[str, str]:
        return {"inputPerMillionTokens": str(self.input), "outputPerMillionTokens": str(self.output)}


FREE = Price(Decimal(0), Decimal(0))
PAID = Price(Decimal(2_000), Decimal(40_000))
"""A request of `TOKENS` tokens costs a little less than one dollar: ceilings are reached in seconds."""


def provider_tier(name: str, url: str, price: Price | None, **external: Any) -> dict[str, Any]:
    """An external tier; `url` is the provider's own for it."""
    given: dict[str, Any] = {"url": url, "allowPlaintext": True, **external}
    if price is not None:
        given["price"] = price.manifest()
    return {
        "apiVersion": support.API,
        "kind": "ModelTier",
        "metadata": {"name": name},
        "spec": {
            "model": f"{name}-model",
            "clearance": "Internal",
            "external": given,
            "quality": [{"task": "any", "score": "0.9"}],
        },
    }


def budget(
    name: str, ceiling: str, ladder: Iterable[tuple[int, str]] = ((100, "Deny"),), **spec: Any
) -> dict[str, Any]:
    """A budget of this month."""
    return {
        "apiVersion": support.API,
        "kind": "NamespaceBudget",
        "metadata": {"name": name},
        "spec": {
            "ceiling": ceiling,
            "ladder": [{"atPercent": at, "action": action} for at, action in ladder],
            **spec,
        },
    }


@dataclass
class Provider:
    """The running provider and its log."""

    port: int
    log: Path
    process: subprocess.Popen[str]

    def url(self, namespace: str, tier: str) -> str:
        return f"http://{NODE_ADDRESS}:{self.port}/{namespace}/{tier}/v1"

    def attempts(self, namespace: str, tier: str | None = None) -> list[dict[str, Any]]:
        """What was asked of it and is over, as it wrote it down."""
        found = [json.loads(line) for line in self.log.read_text().splitlines()]
        return [
            one for one in found if one["tier"].split("/")[0] == namespace and tier in {None, one["tier"].split("/")[1]}
        ]

    def bill(self, namespace: str, prices: dict[str, Price]) -> Decimal:
        """What it bills for a namespace: every attempt, whether anybody got its answer or not."""
        return sum(
            (
                prices[one["tier"].split("/")[1]].of(one)
                for one in self.attempts(namespace)
                if not one["fate"].isdigit()
            ),
            Decimal(0),
        )


@contextlib.contextmanager
def provider(cluster: Cluster, folder: Path) -> Iterator[Provider]:
    """Run a provider inside the cluster's network."""
    log = folder / "provider.jsonl"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    argv = [sys.executable, str(HERE / "metered_provider.py"), "--host", NODE_ADDRESS, "--port", str(port)]
    process = subprocess.Popen(cluster.nsenter([*argv, "--output", str(log)]), text=True)
    try:
        support.until(log.exists, seconds=30, what="the provider runs")
        yield Provider(port, log, process)
    finally:
        process.terminate()
        process.wait(10)


_numbers = itertools.count()


@dataclass(frozen=True)
class Ask:
    """A request to be sent.

    Attributes:
        model: `namespace/policy`, or a policy's model where a key tells the namespace.
        url: of the gateway; empty: any. at: seconds from the start of the load.
        fates: tier -> what its provider does: `ok`, a status, `silent` (no usage), `endless`.
        tokens: that the provider generates. wait, gap: its seconds before the answer, and between two events.
        leave: after how many events the client goes.
    """

    model: str
    url: str = ""
    at: float = 0.0
    fates: dict[str, str] = field(default_factory=dict)
    tokens: int = TOKENS
    stream: bool = False
    wait: float = 0.0
    gap: float = 0.002
    leave: int | None = None
    key: str = ""
    max_tokens: int | None = None

    def planned(self) -> dict[str, Any]:
        """As `metered_load.py` reads it."""
        number = f"r{next(_numbers)}"
        told = {"id": number, "fates": self.fates, "tokens": self.tokens, "wait": self.wait, "gap": self.gap}
        body = {
            "model": self.model,
            "user": json.dumps(told),
            "messages": [{"role": "user", "content": PROMPT}],
            "max_tokens": self.max_tokens or self.tokens,
            "stream": self.stream,
        }
        headers = {"authorization": f"Bearer {self.key}"} if self.key else {}
        return {"id": number, "at": self.at, "url": self.url, "body": body, "headers": headers, "leave": self.leave}


def paced(ask: Ask, *, rate: float, seconds: float) -> list[Ask]:
    """The same request again and again."""
    return [replace(ask, at=number / rate) for number in range(round(rate * seconds))]


class Load:
    """Planned requests on their way; those that name no gateway take them in turn."""

    def __init__(self, cluster: Cluster, asks: Iterable[Ask]) -> None:
        urls = itertools.cycle(sorted(gateways(cluster)))
        plan = "".join(json.dumps(replace(ask, url=ask.url or next(urls)).planned()) + "\n" for ask in asks)
        # A file: a pipe that nobody reads until the end would fill up and hold the requests back.
        self._out = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed when read
        self._process = subprocess.Popen(
            cluster.nsenter([sys.executable, str(HERE / "metered_load.py")]),
            stdin=subprocess.PIPE,
            stdout=self._out,
            text=True,
        )
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(plan)
            self._process.stdin.close()

    def records(self, seconds: float = 120) -> list[dict[str, Any]]:
        """What the client saw, when all requests are over."""
        try:
            self._process.wait(seconds)
        finally:
            if self._process.poll() is None:
                self._process.kill()
                self._process.wait()
        assert self._process.returncode == 0
        with self._out as out:
            out.seek(0)
            text = out.read()
        return sorted((json.loads(line) for line in text.splitlines()), key=lambda each: each["start"])


def gateways(cluster: Cluster) -> dict[str, str]:
    """URL, inside the cluster, of each ready gateway -> its Pod."""
    found = support.pods(cluster, install.NAMESPACE, "tierwise.dev/component=gateway")
    return {
        f"http://{pod['status']['podIP']}:8080": pod["metadata"]["name"]
        for pod in found
        if any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"]["conditions"])
    }


def leader(cluster: Cluster) -> str:
    """The deciding operator's Pod."""
    path = "jsonpath={.spec.holderIdentity}"
    return cluster.kubectl("get", "lease", "tierwise-leader", "-n", install.NAMESPACE, "-o", path).stdout


def status(cluster: Cluster, namespace: str, name: str = "ceiling") -> dict[str, Any]:
    """A budget's status."""
    text = cluster.kubectl("get", "nbud", name, "-n", namespace, "-o", "json").stdout
    found: dict[str, Any] = json.loads(text).get("status", {})
    return found


def settled(cluster: Cluster, namespace: str, name: str = "ceiling", *, quiet_since: float) -> dict[str, Any]:
    """A budget's figures with all that happened before `quiet_since` (Unix seconds) counted.

    Figures are written when they matter and every few minutes; a change of the spec (here of the last decimal of the
    ceiling) has them written at once.
    """
    time.sleep(max(0.0, quiet_since + REACTION_SECONDS - time.time()))
    found = json.loads(cluster.kubectl("get", "nbud", name, "-n", namespace, "-o", "json").stdout)
    ceiling = Decimal(found["spec"]["ceiling"]) + Decimal("0.0001")
    patch = json.dumps({"spec": {"ceiling": str(ceiling)}})
    cluster.kubectl("patch", "nbud", name, "-n", namespace, "--type=merge", "-p", patch)
    generation = found["metadata"]["generation"] + 1

    def written() -> dict[str, Any] | None:
        now = status(cluster, namespace, name)
        return now if now.get("observedGeneration") == generation else None

    return support.until(written, seconds=30, what="the budget's figures are written")


def costs(cluster: Cluster, namespace: str, folder: Path, *arguments: str) -> dict[str, Any]:
    """What `tierwise costs` prints of what kubectl prints."""
    file = folder / "objects.json"
    file.write_text(cluster.kubectl("get", "nbud,cm", "-n", namespace, "-o", "json").stdout)
    command = [sys.executable, "-m", "tierwise", "costs", "-f", str(file), "-o", "json", *arguments]
    printed: dict[str, Any] = json.loads(
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    )
    return printed


def written(cluster: Cluster, resource: str, namespace: str, name: str) -> float:
    """When somebody's last write of a spec was answered, Unix seconds, by the API server's audit log."""
    found = []
    for line in cluster.audit_log.read_text().splitlines():
        event = json.loads(line)
        target = event.get("objectRef", {})
        place = (target.get("resource"), target.get("namespace"), target.get("name"), target.get("subresource"))
        if place == (resource, namespace, name, None) and event["verb"] in {"create", "update", "patch"}:
            found.append(moment(event["stageTimestamp"]).timestamp())
    return max(found)


def amount(figures: dict[str, Any], name: str) -> Decimal:
    """A figure of a status; absent is absent."""
    return Decimal(figures[name])


def moment(text: str) -> datetime:
    """A time as Kubernetes writes it."""
    return datetime.fromisoformat(text)


def denied(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Requests that a ceiling refused."""
    return [
        one
        for one in records
        if one.get("status") == 429 and json.loads(one["error"])["error"]["code"] == "budget_exceeded"
    ]


def check_denial(record: dict[str, Any], *, budget: str, resets_at: datetime) -> None:
    """OpenAI's shape; which budget (`namespace/name`), when it resets (UTC), and Retry-After says the same."""
    error = json.loads(record["error"])["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == "budget_exceeded"
    assert f"NamespaceBudget {budget} " in error["message"], error
    assert f"resets at {resets_at:%Y-%m-%dT%H:%M:%SZ}" in error["message"], error
    assert record["retry_after"] == f"{resets_at:%a, %d %b %Y %H:%M:%S} GMT"


CENT = Decimal("0.01")
MOST_ESTIMATE = 12
"""A bound of what was not reported is at most so many times the bill: one that says nothing holds no ceiling either.
(Bytes for tokens of four, and 512 for the template of a short prompt.)"""


def check_exact(figures: dict[str, Any], bill: Decimal) -> None:
    """All of the bill is counted, once, and nothing is estimated."""
    assert amount(figures, "measured") == bill.quantize(CENT)
    assert amount(figures, "estimated") == 0


def check_bounded(figures: dict[str, Any], bill: Decimal) -> None:
    """What nobody reported is estimated on the high side, and not beyond use."""
    assert amount(figures, "measured") == 0
    assert bill < amount(figures, "estimated") < MOST_ESTIMATE * bill


def check_crash(figures: dict[str, Any], bill: Decimal, at_risk: Decimal, *, crashes: int) -> None:
    """Gateways that died lost what they counted since their last scrape at most, within the bound that is shown."""
    spent = amount(figures, "spent")
    assert bill - at_risk - CENT <= spent <= bill + CENT + amount(figures, "estimated")
    assert bill - spent <= amount(figures, "bound")
    assert figures["gatewaysLost"] == crashes


def check_prices(
    spent: Decimal, attempts: list[dict[str, Any]], *, changed: float, before: Price, after: Price, slack: Decimal
) -> None:
    """Each side of a change (Unix seconds) at its own price; a mistake about all of one side is more than the slack."""
    exact = sum(((after if one["end"] > changed else before).of(one) for one in attempts), Decimal(0))
    assert exact - slack <= spent <= exact + slack
    assert exact - slack > sum(before.of(one) for one in attempts), "the check can tell"
    assert exact + slack < sum(after.of(one) for one in attempts), "the check can tell"


def check_held(records: list[dict[str, Any]], bill: Decimal, *, ceiling: Decimal, bound: Decimal) -> None:
    """The ceiling held up to the bound, nothing was refused before it was near, and nothing passed once decided."""
    refused = denied(records)
    assert refused, "nothing was refused"
    assert ceiling / 5 <= bill <= ceiling + bound
    first = min(one["start"] for one in refused)
    late = [one for one in records if one["start"] > first + CARRY_OUT_SECONDS]
    assert late
    assert len(denied(late)) == len(late), "after the decision no gateway lets any through"


@dataclass(frozen=True)
class Lab:
    """The platform with a provider; each test has a namespace of its own."""

    cluster: Cluster
    provider: Provider

    @property
    def urls(self) -> list[str]:
        """Of the gateways that are ready, inside the cluster."""
        return sorted(gateways(self.cluster))

    def ask(self, namespace: str, policy: str = "chat", **more: Any) -> Ask:
        """A request for one policy's model."""
        return Ask(f"{namespace}/{policy}", **more)

    def load(self, asks: Iterable[Ask]) -> Load:
        """Begin to send."""
        return Load(self.cluster, asks)

    def send(self, asks: Iterable[Ask]) -> list[dict[str, Any]]:
        """Send all; each has to be answered, with whatever status."""
        records = self.load(asks).records()
        assert not [one for one in records if "failure" in one], records
        return records

    def settled(self, namespace: str, name: str = "ceiling", *, quiet_since: float | None = None) -> dict[str, Any]:
        """The budget's figures with all that is over by now, or was by a moment (Unix seconds) that several share."""
        return settled(self.cluster, namespace, name, quiet_since=quiet_since or time.time())

    def tier(self, namespace: str, name: str, price: Price | None, **external: Any) -> dict[str, Any]:
        """A tier at the provider."""
        return provider_tier(name, self.provider.url(namespace, name), price, **external)

    def apply(self, namespace: str, *manifests: dict[str, Any]) -> None:
        """kubectl apply."""
        support.apply(self.cluster, namespace, *manifests)

    def set_up(self, namespace: str, *manifests: dict[str, Any]) -> None:
        """A namespace with these objects."""
        self.cluster.kubectl("create", "namespace", namespace)
        self.apply(namespace, *manifests)

    def wait_ready(self, namespaces: Iterable[str]) -> None:
        """Tiers and policies serve, and budgets count."""
        for namespace in namespaces:
            for kinds in (("modeltiers", "routingpolicies"), ("namespacebudgets",)):
                support.wait_ready(self.cluster, namespace, *kinds)


@contextlib.contextmanager
def lab(cluster: Cluster, folder: Path, namespaces: Iterable[str]) -> Iterator[Lab]:
    """A provider, and the end of these namespaces afterwards."""
    with provider(cluster, folder) as running:
        try:
            yield Lab(cluster, running)
        finally:
            for namespace in namespaces:
                cluster.kubectl("delete", "namespace", namespace, "--wait=false", "--ignore-not-found")
