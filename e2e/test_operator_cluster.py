"""The operator as users install it, on a real cluster: what it writes at rest, and what it does when others die.

What was written is read from the API server's audit log, never from the operator. `TIERWISE_STEADY_SECONDS=600` makes
the test of the steady state last ten minutes; it prints a table of all requests either way.
"""

import collections
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from rich.console import Console
from rich.table import Table

from tierwise.devcluster import install

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

STEADY_SECONDS = float(os.environ.get("TIERWISE_STEADY_SECONDS", "60"))
SYSTEM = install.NAMESPACE
USER = f"system:serviceaccount:{SYSTEM}:tierwise-operator"
TEAM = "team-a"
WRITES = ("create", "update", "patch", "delete", "deletecollection")
CHECKPOINT_SECONDS = 300.0

MANIFESTS = f"""
apiVersion: v1
kind: Namespace
metadata: {{name: {TEAM}}}
---
apiVersion: v1
kind: Secret
metadata: {{name: provider-key, namespace: {TEAM}}}
stringData: {{token: planted-secret-value}}
---
apiVersion: tierwise.dev/v1alpha1
kind: ModelTier
metadata: {{name: compact, namespace: {TEAM}, annotations: {{team: "kept"}}}}
spec:
  model: llama-3.1-8b
  inCluster:
    image: vllm/vllm-openai:v0.24.0
    env:
      - {{name: TIERWISE_SIM_PROFILE, value: llama-3.1-8b/l40s}}
      - {{name: TIERWISE_SIM_STARTUP_SECONDS, value: "1"}}
    price: {{perReplicaHour: "1.50"}}
    replicas: {{min: 1, max: 3, startupSeconds: 5}}
    capacity: {{requestsPerSecond: "4"}}
  quality: [{{task: routine, score: "0.9"}}]
---
apiVersion: tierwise.dev/v1alpha1
kind: ModelTier
metadata: {{name: provider, namespace: {TEAM}}}
spec:
  model: big
  external:
    url: https://api.provider.example/v1
    credentialsRef: {{name: provider-key}}
    price: {{inputPerMillionTokens: "1.00", outputPerMillionTokens: "3.00"}}
  quality: [{{task: routine, score: "0.95"}}]
---
apiVersion: tierwise.dev/v1alpha1
kind: RoutingPolicy
metadata: {{name: assistant, namespace: {TEAM}}}
spec:
  models: [assistant]
  sensitivity: Internal
  referenceTier: compact
  classes:
    - name: routine
      task: routine
      tiers: [{{name: compact}}]
---
apiVersion: tierwise.dev/v1alpha1
kind: NamespaceBudget
metadata: {{name: ceiling, namespace: {TEAM}}}
spec:
  period: Month
  timeZone: UTC
  ceiling: "1000.00"
  currency: USD
  ladder: [{{atPercent: 80, action: Notify}}]
"""


def until(check, seconds=60, pause=0.2):
    """Wait until `check` gives something true; that, and how long it took."""
    start = time.monotonic()
    while True:
        found = check()
        if found:
            return found, time.monotonic() - start
        assert time.monotonic() - start < seconds, f"not within {seconds} s: {check.__doc__ or check}"
        time.sleep(pause)


class Lab:
    """A cluster with the operator in it."""

    def __init__(self, cluster):
        self.cluster = cluster

    def get(self, kind, name="", namespace=TEAM):
        arguments = ["get", kind, *([name] if name else []), "-n", namespace, "-o", "json"]
        return json.loads(self.cluster.kubectl(*arguments).stdout)

    def holder(self):
        with contextlib.suppress(Exception):  # the API server may be away
            return self.get("lease", "tierwise-leader", SYSTEM)["spec"].get("holderIdentity")
        return None

    def operators(self):
        items = self.get("pods", namespace=SYSTEM)["items"]
        return {
            pod["metadata"]["name"]: pod
            for pod in items
            if pod["metadata"]["labels"].get("tierwise.dev/component") == "operator"
            and "deletionTimestamp" not in pod["metadata"]
        }

    def both_run(self):
        """both replicas run, their containers ready"""
        pods = self.operators().values()
        return len(pods) == 2 and all(
            pod["status"]["phase"] == "Running" and pod["status"]["containerStatuses"][0]["ready"] for pod in pods
        )

    def restarts(self):
        return {name: pod["status"]["containerStatuses"][0]["restartCount"] for name, pod in self.operators().items()}

    def touch(self):
        """Change the tier; how long until its new generation is observed, seconds."""
        serial = str(time.time_ns())
        patch = {"spec": {"inCluster": {"args": [f"--served-model-name=llama-3.1-8b-{serial}"]}}}
        self.cluster.kubectl(
            "patch", "modeltier", "compact", "-n", TEAM, "--type=merge", f"--patch={json.dumps(patch)}"
        )
        generation = self.get("modeltier", "compact")["metadata"]["generation"]

        def observed():
            """the tier's new generation is observed, its Deployment changed"""
            tier = self.get("modeltier", "compact")
            seen = tier.get("status", {}).get("observedGeneration") == generation
            return seen and serial in json.dumps(self.get("deployment", "compact")["spec"])

        return until(observed, 60)[1]

    def audit(self, position):
        """Requests by the operator since a position in the log."""
        with self.cluster.audit_log.open() as log:
            log.seek(position)
            for line in log:
                entry = json.loads(line)
                if entry["user"]["username"] == USER and entry["stage"] == "ResponseComplete":
                    yield entry

    def metric(self, name):
        """Sum of a metric over all operators, by Prometheus; None when there is no series."""
        address = self.cluster.forward("monitoring", "prometheus", 9090)
        with urllib.request.urlopen(f"http://{address}/api/v1/query?query=sum({name})", timeout=5) as answer:
            result = json.load(answer)["data"]["result"]
        return float(result[0]["value"][1]) if result else None


@pytest.fixture(scope="module")
def lab(fresh):
    fresh.kubectl("apply", "-f", "-", input_text=MANIFESTS)
    lab = Lab(fresh)
    until(lambda: lab.get("modeltier", "compact").get("status", {}).get("observedGeneration"), 60)
    yield lab
    fresh.kubectl("delete", "namespace", TEAM, "--wait=false")


@pytest.fixture
def settled(lab):
    """Nothing moves any more: the tier is available and no status changed for ten seconds."""
    lab.cluster.kubectl("rollout", "status", "deployment/compact", "-n", TEAM, "--timeout=90s")

    def versions():
        return {
            (item["kind"], item["metadata"]["name"]): item["metadata"]["resourceVersion"]
            for kind in ("modeltiers", "routingpolicies", "namespacebudgets", "deployments", "configmaps")
            for item in lab.get(kind)["items"]
        }

    def quiet():
        """no object changed for ten seconds"""
        before = versions()
        time.sleep(10)
        return versions() == before

    until(quiet, 120)
    return lab


def test_a_tier_gets_its_children_and_the_user_keeps_what_is_his(lab):
    for kind in ("deployment", "service", "hpa", "pdb"):
        until(lambda kind=kind: lab.cluster.kubectl("get", kind, "compact", "-n", TEAM, check=False).returncode == 0)
        child = lab.get(kind, "compact")
        assert child["metadata"]["ownerReferences"][0]["kind"] == "ModelTier"
    tier = lab.get("modeltier", "compact")
    assert tier["metadata"]["annotations"]["team"] == "kept"
    assert not tier["metadata"].get("finalizers")
    written = {
        entry["manager"]
        for entry in json.loads(
            lab.cluster.kubectl("get", "modeltier", "compact", "-n", TEAM, "-o", "json", "--show-managed-fields").stdout
        )["metadata"]["managedFields"]
        if entry.get("subresource") != "status"
    }
    assert "tierwise" not in written, "the operator owns nothing of a user's object but its status"


def test_gateways_report_and_what_they_took_is_kept(lab):
    def acknowledged():
        """every connected gateway acknowledged"""
        entries = lab.get("routingpolicy", "assistant").get("status", {}).get("gateways", [])
        connected = sum(entry.get("connected", 0) for entry in entries)
        return connected == 2 and sum(entry.get("acknowledged", 0) for entry in entries) == 2 and entries

    entries, _ = until(acknowledged, 60)
    assert {entry["name"] for entry in entries} <= set(lab.operators())
    kept, _ = until(
        lambda: [c for c in lab.get("configmaps")["items"] if c["metadata"]["name"].startswith("tierwise-")]
    )
    assert "planted-secret-value" not in json.dumps(kept)


def test_no_secret_reaches_the_logs(lab):
    for name in lab.operators():
        text = lab.cluster.kubectl("logs", name, "-n", SYSTEM).stdout
        assert "started" in text
        assert "planted-secret-value" not in text


def test_at_rest_only_the_lease_is_written(settled):
    """Besides the Lease: one checkpoint of the budget's ledger in five minutes."""
    lab = settled
    position = lab.cluster.audit_log.stat().st_size
    suppressed = lab.metric("tierwise_writes_suppressed_total")
    time.sleep(STEADY_SECONDS)
    table = collections.Counter()
    forbidden = []
    for entry in lab.audit(position):
        ref = entry.get("objectRef", {})
        what = f"{ref.get('resource', entry['requestURI'])}{'/' + ref['subresource'] if ref.get('subresource') else ''}"
        table[entry["verb"], what, entry["responseStatus"]["code"]] += 1
        if entry["verb"] in WRITES and what not in {"leases", "namespacebudgets/status"}:
            forbidden.append((entry["verb"], what, ref.get("name")))
    shown = Table("verb", "what", "code", "count", title=f"requests by the operator, {STEADY_SECONDS:.0f} s at rest")
    for (verb, what, code), count in sorted(table.items(), key=str):
        shown.add_row(verb, what, str(code), str(count))
    Console(width=100).print(shown)
    assert forbidden == []
    checkpoints = sum(n for (verb, what, _), n in table.items() if verb in WRITES and what == "namespacebudgets/status")
    assert checkpoints <= STEADY_SECONDS // CHECKPOINT_SECONDS + 1
    renewals = sum(n for (verb, what, _), n in table.items() if verb == "update" and what == "leases")
    assert STEADY_SECONDS / 4 < renewals < STEADY_SECONDS, "the log shows the operator at work"
    assert {code for _, _, code in table} == {200}, "nothing is asked for that the role does not allow"
    assert lab.metric("tierwise_writes_suppressed_total") == suppressed


def test_a_change_shows_within_seconds(settled):
    seconds = settled.touch()
    print(f"\nfrom a change of the tier to status and Deployment: {seconds:.2f} s")
    assert seconds < 5


def test_another_replica_decides_while_the_leader_hangs(lab):
    leader, _ = until(lab.holder)
    stopped = list(lab.cluster.pod_pids(SYSTEM, leader).values())
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        successor, seconds = until(lambda: (holder := lab.holder()) not in {None, leader} and holder, 60)
        print(f"\nanother replica decides {seconds:.1f} s after the leader stopped answering")
        assert seconds < 25
        assert lab.touch() < 10
    finally:
        for pid in stopped:
            with contextlib.suppress(ProcessLookupError):  # its liveness probe may have ended it
                os.kill(pid, signal.SIGCONT)
    time.sleep(5)
    assert lab.holder() == successor, "it does not take the Lease back when it wakes up"
    until(lab.both_run, 90)


def test_decisions_go_on_after_the_leader_is_killed(lab):
    """Its container starts again within seconds, or another replica takes over: either decides."""
    leader, _ = until(lab.holder)
    restarts = lab.restarts()[leader]
    start = time.monotonic()
    for pid in lab.cluster.pod_pids(SYSTEM, leader).values():
        os.kill(pid, signal.SIGKILL)
    assert lab.touch() < 25
    print(f"\n{lab.holder()} decides {time.monotonic() - start:.1f} s after {leader} was killed")
    until(lab.both_run)
    assert lab.restarts()[leader] > restarts, "it was killed"


def test_the_lease_is_handed_over_when_the_leader_is_deleted_and_its_entry_goes(lab):
    until(
        lambda: all(pod["status"].get("containerStatuses", [{}])[0].get("ready") for pod in lab.operators().values()),
        90,
    )
    leader, _ = until(lab.holder)
    lab.cluster.kubectl("delete", "pod", leader, "-n", SYSTEM, "--wait=false")
    _, seconds = until(lambda: lab.holder() not in {None, leader}, 30)
    print(f"\nthe Lease was handed over in {seconds:.1f} s")
    assert seconds < 10

    def pruned():
        """the entry of the deleted replica is gone from the policy"""
        entries = lab.get("routingpolicy", "assistant").get("status", {}).get("gateways", [])
        return entries and leader not in {entry["name"] for entry in entries}

    until(pruned, 90)


def test_it_runs_outside_of_a_cluster_too_and_ends_when_asked(lab):
    """As a third replica that does not decide."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = [
        *("--kubeconfig", str(lab.cluster.kubeconfig), "--namespace", SYSTEM, "--identity", "outside"),
        *("--insecure-xds", "--xds-host", "127.0.0.1", "--xds-port", "0"),
        *("--http-host", "127.0.0.1", "--http-port", str(port), "--log-format", "console"),
    ]
    process = subprocess.Popen([sys.executable, "-m", "tierwise", "run", *arguments], stderr=subprocess.PIPE)
    try:

        def ready():
            """/readyz of the process answers 200"""
            assert process.poll() is None, process.stderr.read().decode()
            with (
                contextlib.suppress(OSError),
                urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=1) as page,
            ):
                return page.status == 200
            return False

        _, seconds = until(ready, 60)
        print(f"\nready {seconds:.1f} s after its start")
        process.terminate()
        start = time.monotonic()
        assert process.wait(20) == 0
        print(f"ended {time.monotonic() - start:.1f} s after SIGTERM")
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_the_api_server_dies_and_comes_back(lab):
    until(lambda: len(lab.operators()) == 2 and lab.holder() in lab.operators(), 60)
    restarts = lab.restarts()
    os.kill(lab.cluster.pid("kube-apiserver"), signal.SIGKILL)
    _, back = until(lab.holder, 60)
    seconds = lab.touch()
    print(f"\nthe API server answered after {back:.1f} s; a change was carried out {seconds:.1f} s later")
    assert seconds < 40
    assert lab.restarts() == restarts, "no operator Pod had to restart"


def test_prometheus_goes_and_comes_back(lab):
    """Killed and kept away: changes are carried out, what is unknown freezes, and its return thaws it."""

    def scale(replicas):
        lab.cluster.kubectl("scale", "deployment/prometheus", "-n", "monitoring", f"--replicas={replicas}")

    def condition(name):
        conditions = lab.get("routingpolicy", "assistant").get("status", {}).get("conditions", [])
        return next((one["status"] for one in conditions if one["type"] == name), None)

    def stale():
        """the policy says that its signals are stale"""
        return condition("MetricsStale") == "True"

    def fresh():
        """the policy does not say any more that its signals are stale"""
        return condition("MetricsStale") != "True"

    until(fresh, 90)
    pods = lab.get("pods", namespace="monitoring")["items"]
    name = next(pod["metadata"]["name"] for pod in pods if "prometheus" in pod["metadata"]["name"])
    began = time.monotonic()
    for pid in lab.cluster.pod_pids("monitoring", name).values():
        os.kill(pid, signal.SIGKILL)
    scale(0)
    try:
        assert lab.touch() < 10, "changes are carried out without Prometheus"
        until(stale, 180)
        frozen = time.monotonic() - began
        assert lab.touch() < 10
    finally:
        scale(1)
    _, thawed = until(fresh, 120)
    print(f"\nMetricsStale {frozen:.0f} s after Prometheus had gone, cleared {thawed:.0f} s after it was started")

    def counted():
        """the operator counted its failed reads"""
        with contextlib.suppress(OSError, ValueError):
            return lab.metric("tierwise_errors_total%7Bwhere=%22prometheus%22%7D")
        return None

    until(counted, 60, pause=1)


def test_deleting_everything_leaves_nothing(lab):
    lab.cluster.kubectl(
        "delete",
        "--wait=false",
        "-f",
        "-",
        input_text="\n---\n".join(part for part in MANIFESTS.split("---") if "tierwise.dev" in part),
    )

    def gone():
        """no object of ours is left"""
        kinds = "deployments,services,hpa,pdb,configmaps,modeltiers,routingpolicies,namespacebudgets"
        left = [
            item["metadata"]["name"]
            for item in lab.get(kinds)["items"]
            if item["metadata"]["name"] != "kube-root-ca.crt"
        ]
        return not left

    _, seconds = until(gone, 60)
    print(f"\neverything was gone after {seconds:.1f} s")


def test_the_log_names_what_happened(lab):
    for name in lab.operators():
        for line in lab.cluster.kubectl("logs", name, "-n", SYSTEM).stdout.splitlines():
            record = json.loads(line)
            assert record["level"] not in {"critical", "error"}, record
