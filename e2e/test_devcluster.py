"""The development cluster does what Kubernetes does, as far as Tierwise's manifests ask of it."""

import concurrent.futures
import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tierwise import yaml_text
from tierwise.devcluster import cluster as clusters
from tierwise.devcluster.cluster import Cluster
from tierwise.devcluster.errors import DevClusterError
from tierwise.devcluster.existing import ExistingCluster
from tierwise.devcluster.paths import GO_SOURCES, State

pytestmark = pytest.mark.slow


@pytest.fixture
def namespace(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[str]:
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name.removeprefix("test_"))[:50].strip("-")
    cluster.kubectl("create", "namespace", name)
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")


def apply(cluster: Cluster, namespace: str, *objects: dict[str, Any]) -> None:
    text = yaml_text.dump_all(objects)
    cluster.kubectl("-n", namespace, "apply", "--server-side", "-f", "-", input_text=text)


def get(cluster: Cluster, namespace: str, kind: str, name: str = "", *options: str) -> dict[str, Any]:
    arguments = ["-n", namespace, "get", kind, *([name] if name else []), *options, "-o", "json"]
    found: dict[str, Any] = json.loads(cluster.kubectl(*arguments).stdout)
    return found


def eventually(check: Callable[[], Any], *, seconds: float = 20.0, what: str = "") -> Any:
    """The first truthy answer; what was seen last goes into the failure."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            seen = check()
        except (DevClusterError, OSError, http.client.HTTPException) as error:
            seen = None
            what = what or str(error)
        if seen:
            return seen
        if time.monotonic() > deadline:
            pytest.fail(f"not within {seconds:g} s: {what} (last: {seen!r})")
        time.sleep(0.1)


def pod(name: str, *command: str, **container: Any) -> dict[str, Any]:
    spec = container.pop("pod", {})
    labels = container.pop("labels", {})
    volumes = container.pop("volumes", [])
    own = {"name": "main", "image": "busybox:1.37", "command": list(command), **container}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels},
        "spec": {"terminationGracePeriodSeconds": 1, "containers": [own], "volumes": volumes, **spec},
    }


def script(text: str) -> tuple[str, str, str]:
    return ("python3", "-uc", textwrap.dedent(text))


def wait_ready(cluster: Cluster, namespace: str, name: str) -> dict[str, Any]:
    cluster.kubectl("-n", namespace, "wait", "--for=condition=Ready", f"pod/{name}", "--timeout=20s")
    return get(cluster, namespace, "pod", name)


def container_status(cluster: Cluster, namespace: str, name: str) -> dict[str, Any]:
    status: dict[str, Any] = get(cluster, namespace, "pod", name)["status"]["containerStatuses"][0]
    return status


def deployment(name: str, replicas: int, container: dict[str, Any], **spec: Any) -> dict[str, Any]:
    labels = {"app": name}
    annotations = spec.pop("annotations", {})
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels, "annotations": annotations},
                "spec": {"terminationGracePeriodSeconds": 1, "containers": [container], **spec},
            },
        },
    }


def service(name: str, port: int, *, headless: bool = True) -> dict[str, Any]:
    spec: dict[str, Any] = {"selector": {"app": name}, "ports": [{"name": "http", "port": port}]}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": spec | ({"clusterIP": "None"} if headless else {}),
    }


# Answers every request with the Pod's name; /ready by the presence of a file.
WEB = """
    import http.server, os
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            ok = self.path != "/ready" or not os.path.exists("/tmp/broken")
            self.send_response(200 if ok else 503); self.end_headers()
            self.wfile.write(os.environ["HOSTNAME"].encode())
        def log_message(self, *args): pass
    http.server.ThreadingHTTPServer.request_queue_size = 1024
    http.server.ThreadingHTTPServer((os.environ["POD_IP"], 8000), Handler).serve_forever()
"""
POD_IP = {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}


def web_container(**more: Any) -> dict[str, Any]:
    probe = {"httpGet": {"path": "/ready", "port": "http"}, "periodSeconds": 1, "failureThreshold": 1}
    return {
        "name": "web",
        "image": "python:3.13",
        "command": list(script(WEB)),
        "env": [POD_IP],
        "ports": [{"name": "http", "containerPort": 8000}],
        "readinessProbe": probe,
        **more,
    }


def fetch(address: str, path: str = "/") -> str:
    host, _, port = address.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=10)
    with contextlib.closing(connection):
        connection.request("GET", path)
        return connection.getresponse().read().decode()


def resolve(cluster: Cluster, host: str) -> set[str]:
    """What a program inside the cluster's network gets for a name."""
    code = f"import socket; print(*{{a[4][0] for a in socket.getaddrinfo({host!r}, 80, socket.AF_INET)}})"
    done = subprocess.run(
        cluster.nsenter(["python3", "-c", code]), capture_output=True, text=True, check=False, timeout=20
    )
    return set(done.stdout.split())


def pod_addresses(cluster: Cluster, namespace: str, label: str) -> set[str]:
    items = get(cluster, namespace, "pods", "", "-l", label)["items"]
    return {item["status"]["podIP"] for item in items if "deletionTimestamp" not in item["metadata"]}


def test_rollout_scale_and_names(cluster: Cluster, namespace: str, console: Console) -> None:
    gpu = {"resources": {"limits": {"nvidia.com/gpu": "1"}}}
    apply(cluster, namespace, deployment("web", 2, web_container(**gpu)), service("web", 8000))
    began = time.monotonic()
    cluster.kubectl("-n", namespace, "rollout", "status", "deployment/web", "--timeout=30s")
    console.print(f"rollout of 2 Pods: {time.monotonic() - began:.2f} s")
    cluster.kubectl("-n", namespace, "scale", "deployment/web", "--replicas=6")
    cluster.kubectl("-n", namespace, "rollout", "status", "deployment/web", "--timeout=30s")
    addresses = pod_addresses(cluster, namespace, "app=web")
    assert len(addresses) == 6
    name = f"web.{namespace}.svc.cluster.local"
    eventually(lambda: resolve(cluster, name) == addresses, what="the headless Service's name leads to every Pod")
    forward = cluster.forward(namespace, "web", "http")
    assert cluster.forward(namespace, "web", "http") == forward, "a forward's address is stable"
    assert cluster.forward(namespace, "web", 8000) != "", "a port can be named or numbered"
    names = {fetch(forward) for _ in range(60)}
    assert len(names) == 6, "the relay uses all endpoints"
    cluster.kubectl("-n", namespace, "scale", "deployment/web", "--replicas=1")
    eventually(lambda: len(resolve(cluster, name)) == 1, what="names follow when Pods go")
    eventually(lambda: len(get(cluster, namespace, "pods")["items"]) == 1, what="Pods are removed")


def test_an_object_goes_with_its_pod_and_not_with_its_grace_period(cluster: Cluster, namespace: str) -> None:
    own = pod("obedient", "sleep", "600")
    own["spec"]["terminationGracePeriodSeconds"] = 60
    apply(cluster, namespace, own)
    wait_ready(cluster, namespace, "obedient")
    began = time.monotonic()
    cluster.kubectl("-n", namespace, "delete", "pod", "obedient")
    assert time.monotonic() - began < 10


def test_more_gpus_than_the_node_has_stay_pending(cluster: Cluster, namespace: str) -> None:
    apply(cluster, namespace, pod("greedy", "sleep", "60", resources={"limits": {"nvidia.com/gpu": "65"}}))

    def unschedulable() -> bool:
        conditions = get(cluster, namespace, "pod", "greedy")["status"].get("conditions", [])
        return any(c["type"] == "PodScheduled" and c.get("reason") == "Unschedulable" for c in conditions)

    eventually(unschedulable)


def test_a_clusterip_service_can_be_reached(cluster: Cluster, namespace: str) -> None:
    apply(cluster, namespace, deployment("web", 1, web_container()), service("web", 8000, headless=False))
    cluster.kubectl("-n", namespace, "rollout", "status", "deployment/web", "--timeout=30s")
    address = get(cluster, namespace, "service", "web")["spec"]["clusterIP"]
    code = f"import urllib.request as u; print(u.urlopen('http://{address}:8000/', timeout=5).status)"
    apply(cluster, namespace, pod("client", *script(code), pod={"restartPolicy": "Never"}))
    eventually(lambda: get(cluster, namespace, "pod", "client")["status"]["phase"] == "Succeeded")
    assert cluster.kubectl("-n", namespace, "logs", "client").stdout.strip() == "200"


def test_environment_and_volumes(cluster: Cluster, namespace: str) -> None:
    command = script("""
        import json, os, pathlib, time
        read = lambda path: pathlib.Path(path).read_text()
        account = "/var/run/secrets/kubernetes.io/serviceaccount/"
        seen = dict(os.environ) | {
            "file": read("/config/a"), "sub": read("/etc/deep/below/here"), "secret": read("/secret/password"),
            "labels": read("/about/labels"), "namespace": read(account + "namespace"), "host": read("/etc/hostname"),
            "token": len(read(account + "token").split(".")), "ca": read(account + "ca.crt").split("\\n")[0],
            "cwd": os.getcwd(), "init": read("/data/init"), "items": read("/items/x/y"),
        }
        print(json.dumps(seen))
        while True:
            print("now", read("/config/a"), flush=True)
            time.sleep(0.1)
    """)
    config = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "config"},
        "data": {"a": "one", "KEY": "value"},
    }
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "secret"}, "stringData": {"password": "hush"}}
    init = {
        "name": "init",
        "image": "busybox",
        "command": ["sh", "-c", "echo -n first > /data/init"],
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
    }
    second = init | {"name": "second", "command": ["sh", "-c", "echo -n ,second >> /data/init"]}
    env = [
        {"name": "A", "value": "alpha"},
        {"name": "B", "value": "$(A)-beta $$(A) $(NONE)"},
        POD_IP,
        {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
        {"name": "LABEL", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['color']"}}},
        {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu", "divisor": "1m"}}},
        {"name": "FROM_CONFIG", "valueFrom": {"configMapKeyRef": {"name": "config", "key": "KEY"}}},
        {"name": "FROM_SECRET", "valueFrom": {"secretKeyRef": {"name": "secret", "key": "password"}}},
        {"name": "OPTIONAL", "valueFrom": {"secretKeyRef": {"name": "none", "key": "x", "optional": True}}},
    ]
    mounts = [
        {"name": "config", "mountPath": "/config"},
        {"name": "config", "mountPath": "/etc/deep/below/here", "subPath": "a"},
        {"name": "secret", "mountPath": "/secret"},
        {"name": "about", "mountPath": "/about"},
        {"name": "data", "mountPath": "/data"},
        {"name": "items", "mountPath": "/items"},
    ]
    labels = {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}
    volumes = [
        {"name": "config", "configMap": {"name": "config"}},
        {"name": "secret", "secret": {"secretName": "secret"}},
        {"name": "about", "downwardAPI": {"items": [labels]}},
        {"name": "data", "emptyDir": {}},
        {
            "name": "items",
            "projected": {"sources": [{"configMap": {"name": "config", "items": [{"key": "a", "path": "x/y"}]}}]},
        },
    ]
    resources = {"limits": {"cpu": "250m", "memory": "64Mi"}}
    own = pod("all", *command, env=env, envFrom=[{"configMapRef": {"name": "config"}, "prefix": "P_"}], volumes=volumes)
    own["metadata"]["labels"] = {"color": "red"}
    own["spec"]["initContainers"] = [init, second]
    own["spec"]["containers"][0] |= {"volumeMounts": mounts, "resources": resources, "workingDir": "/data"}
    # The Pod comes first: it waits for what it mounts.
    apply(cluster, namespace, own)
    time.sleep(0.5)
    assert get(cluster, namespace, "pod", "all")["status"]["phase"] == "Pending"
    apply(cluster, namespace, config, secret)
    status = wait_ready(cluster, namespace, "all")["status"]
    seen = json.loads(cluster.kubectl("-n", namespace, "logs", "all").stdout.splitlines()[0])
    expected = {
        "A": "alpha",
        "B": "alpha-beta $(A) $(NONE)",
        "POD_IP": status["podIP"],
        "NODE": "process-node",
        "LABEL": "red",
        "CPU": "250",
        "FROM_CONFIG": "value",
        "FROM_SECRET": "hush",
        "P_KEY": "value",
        "file": "one",
        "sub": "one",
        "secret": "hush",
        "namespace": namespace,
        "host": "all\n",
        "token": 3,
        "ca": "-----BEGIN CERTIFICATE-----",
        "cwd": "/data",
        "init": "first,second",
        "items": "one",
    }
    assert {name: seen.get(name) for name in expected} == expected
    assert "OPTIONAL" not in seen
    assert 'color="red"' in seen["labels"].splitlines()
    config["data"]["a"] = "two"
    apply(cluster, namespace, config)
    began = time.monotonic()
    eventually(
        lambda: "now two" in cluster.kubectl("-n", namespace, "logs", "all", "--tail=2").stdout,
        seconds=3,
        what="the mounted ConfigMap follows its object",
    )
    assert time.monotonic() - began < 3


def test_a_service_account_may_do_what_rbac_says(cluster: Cluster, namespace: str) -> None:
    code = """
        import json, os, ssl, urllib.request
        folder = "/var/run/secrets/kubernetes.io/serviceaccount/"
        api = f"https://{os.environ['KUBERNETES_SERVICE_HOST']}:{os.environ['KUBERNETES_SERVICE_PORT']}"
        namespace, token = open(folder + "namespace").read(), open(folder + "token").read()
        context = ssl.create_default_context(cafile=folder + "ca.crt")
        for host in (api, "https://kubernetes.default.svc"):
            for what in ("configmaps", "secrets"):
                request = urllib.request.Request(f"{host}/api/v1/namespaces/{namespace}/{what}")
                request.add_header("Authorization", f"Bearer {token}")
                try:
                    print(what, urllib.request.urlopen(request, context=context, timeout=5).status)
                except urllib.error.HTTPError as error:
                    print(what, error.code)
    """
    rule = {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["list"]}
    rbac = {"apiVersion": "rbac.authorization.k8s.io/v1"}
    apply(
        cluster,
        namespace,
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "reader"}},
        rbac | {"kind": "Role", "metadata": {"name": "reader"}, "rules": [rule]},
        rbac
        | {
            "kind": "RoleBinding",
            "metadata": {"name": "reader"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "reader"},
            "subjects": [{"kind": "ServiceAccount", "name": "reader"}],
        },
        pod("reader", *script(code), pod={"serviceAccountName": "reader", "restartPolicy": "Never"}),
    )
    eventually(lambda: get(cluster, namespace, "pod", "reader")["status"]["phase"] == "Succeeded")
    said = cluster.kubectl("-n", namespace, "logs", "reader").stdout.split("\n")[:4]
    assert said == ["configmaps 200", "secrets 403"] * 2
    # And the API server's audit log tells of it: reads by service accounts are kept.
    user = f"system:serviceaccount:{namespace}:reader"

    def codes() -> set[tuple[str, int]]:
        events = [json.loads(line) for line in cluster.audit_log.read_text().splitlines()]
        mine = [event for event in events if event["user"]["username"] == user]
        return {(event["objectRef"]["resource"], event["responseStatus"]["code"]) for event in mine}

    eventually(lambda: codes() == {("configmaps", 200), ("secrets", 403)})


def test_probes(cluster: Cluster, namespace: str) -> None:
    apply(cluster, namespace, deployment("web", 1, web_container()), service("web", 8000))
    cluster.kubectl("-n", namespace, "rollout", "status", "deployment/web", "--timeout=30s")
    name = get(cluster, namespace, "pods")["items"][0]["metadata"]["name"]
    host = f"web.{namespace}.svc.cluster.local"
    eventually(lambda: resolve(cluster, host) != set())
    cluster.kubectl("-n", namespace, "exec", name, "--", "touch", "/tmp/broken")
    eventually(lambda: not container_status(cluster, namespace, name)["ready"], what="the readiness probe fails")
    eventually(lambda: resolve(cluster, host) == set(), what="a Pod that is not ready has no name")
    cluster.kubectl("-n", namespace, "exec", name, "--", "rm", "/tmp/broken")
    eventually(lambda: container_status(cluster, namespace, name)["ready"], what="it is ready again")
    assert container_status(cluster, namespace, name)["restartCount"] == 0
    assert not Path("/tmp/broken").exists(), "a container's writes stay in the container"


def test_startup_and_liveness_probes(cluster: Cluster, namespace: str) -> None:
    command = ("sh", "-c", "rm -f /tmp/up /tmp/ill; sleep 2; touch /tmp/up; sleep 600")
    check = {"periodSeconds": 1, "failureThreshold": 1}
    apply(
        cluster,
        namespace,
        pod(
            "slow",
            *command,
            startupProbe=check | {"exec": {"command": ["test", "-e", "/tmp/up"]}, "failureThreshold": 20},
            livenessProbe=check | {"exec": {"command": ["test", "!", "-e", "/tmp/ill"]}},
            pod={"terminationGracePeriodSeconds": 1},
        ),
    )
    eventually(lambda: container_status(cluster, namespace, "slow")["state"].get("running"))
    assert not container_status(cluster, namespace, "slow")["ready"], "not ready before its startup probe succeeds"
    wait_ready(cluster, namespace, "slow")
    cluster.kubectl("-n", namespace, "exec", "slow", "--", "touch", "/tmp/ill")
    eventually(
        lambda: container_status(cluster, namespace, "slow")["restartCount"] == 1, what="the liveness probe restarts it"
    )
    events = cluster.kubectl("-n", namespace, "get", "events").stdout
    assert "Liveness probe of container main failed" in events


def test_end_of_a_pod(cluster: Cluster, namespace: str, tmp_path: Path) -> None:
    """preStop comes before SIGTERM; one that does not obey is killed after the grace period; then the object goes."""
    command = script("""
        import signal, time
        log = open("/evidence/log", "a", buffering=1)
        signal.signal(signal.SIGTERM, lambda *_: log.write(f"term {time.time()}\\n"))
        log.write("started 0\\n")
        while True:
            time.sleep(0.05)
            log.write(f"alive {time.time()}\\n")
    """)
    mount = [{"name": "evidence", "mountPath": "/evidence"}]
    hook = {"preStop": {"exec": {"command": ["sh", "-c", "echo prestop $(date +%s.%N) >> /evidence/log; sleep 1"]}}}
    volumes = [{"name": "evidence", "hostPath": {"path": str(tmp_path)}}]
    own = pod("stubborn", *command, volumeMounts=mount, lifecycle=hook, volumes=volumes, labels={"app": "stubborn"})
    own["spec"]["terminationGracePeriodSeconds"] = 3
    apply(cluster, namespace, own, service("stubborn", 80))
    wait_ready(cluster, namespace, "stubborn")
    slices = ("endpointslices", "", "-l", "kubernetes.io/service-name=stubborn")

    def conditions() -> list[dict[str, Any]]:
        items = get(cluster, namespace, *slices)["items"]
        return [endpoint["conditions"] for item in items for endpoint in item["endpoints"] or []]

    eventually(lambda: [c["ready"] for c in conditions()] == [True])
    began = time.time()
    cluster.kubectl("-n", namespace, "delete", "pod", "stubborn", "--wait=false")
    eventually(lambda: [(c["ready"], c["terminating"]) for c in conditions()] == [(False, True)], seconds=2)
    eventually(lambda: not get(cluster, namespace, "pods")["items"], seconds=10)
    gone = time.time() - began
    lines = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    at = {word: float(when) - began for word, when in lines}
    assert 0 <= at["prestop"] < 1
    assert at["prestop"] + 0.9 < at["term"] < at["prestop"] + 2
    assert at["alive"] > at["term"] + 0.5, "it lived on after SIGTERM"
    assert 2.5 < at["alive"] < 4, "and was killed when the grace period was over"
    assert gone < 6


def test_restarts_with_back_off_and_logs(cluster: Cluster, namespace: str) -> None:
    apply(cluster, namespace, pod("crash", "sh", "-c", "echo run; echo more; sleep 0.2; exit 7"))

    def in_loop() -> bool:
        status = container_status(cluster, namespace, "crash")
        waiting = status["state"].get("waiting", {})
        return bool(waiting.get("reason") == "CrashLoopBackOff" and status["restartCount"] >= 2)

    eventually(in_loop)
    last = container_status(cluster, namespace, "crash")["lastState"]["terminated"]
    assert (last["exitCode"], last["reason"]) == (7, "Error")
    assert get(cluster, namespace, "pod", "crash")["status"]["phase"] == "Running"
    assert cluster.kubectl("-n", namespace, "logs", "crash", "--previous").stdout == "run\nmore\n"
    assert cluster.kubectl("-n", namespace, "logs", "crash", "--tail=1").stdout == "more\n"
    followed = subprocess.run(
        [clusters.find_program("kubectl"), "-n", namespace, "logs", "-f", "crash"],
        env=cluster.environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert followed.stdout == "run\nmore\n"


def test_a_killed_container_is_restarted_in_its_pod(cluster: Cluster, namespace: str) -> None:
    apply(cluster, namespace, pod("victim", "sleep", "600"))
    before = wait_ready(cluster, namespace, "victim")
    pid = cluster.pod_pids(namespace, "victim")["main"]
    assert Path(f"/proc/{pid}/cmdline").read_bytes() == b"sleep\x00600\x00"
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: container_status(cluster, namespace, "victim")["restartCount"] == 1, seconds=5)
    after = wait_ready(cluster, namespace, "victim")
    assert after["status"]["podIP"] == before["status"]["podIP"]
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    status = container_status(cluster, namespace, "victim")
    assert (status["lastState"]["terminated"]["exitCode"], status["lastState"]["terminated"]["signal"]) == (137, 9)
    assert cluster.pod_pids(namespace, "victim")["main"] != pid


def test_exec(cluster: Cluster, namespace: str) -> None:
    apply(cluster, namespace, pod("box", "sleep", "600", env=[{"name": "X", "value": "word"}]))
    wait_ready(cluster, namespace, "box")
    done = cluster.kubectl(
        "-n", namespace, "exec", "box", "--", "sh", "-c", "echo $X; echo no >&2; exit 5", check=False
    )
    assert (done.stdout, done.returncode) == ("word\n", 5)
    assert "no\n" in done.stderr
    done = cluster.kubectl("-n", namespace, "exec", "-i", "box", "--", "cat", input_text="through\n")
    assert done.stdout == "through\n"


def test_a_job_completes_and_a_sidecar_ends_with_it(cluster: Cluster, namespace: str) -> None:
    sidecar = {"name": "side", "image": "busybox", "command": ["sleep", "600"], "restartPolicy": "Always"}
    main = {"name": "main", "image": "busybox", "command": ["sh", "-c", "sleep 0.5; exit 0"]}
    template = {"spec": {"restartPolicy": "Never", "initContainers": [sidecar], "containers": [main]}}
    template["spec"]["terminationGracePeriodSeconds"] = 1
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "job"}, "spec": {"template": template}}
    apply(cluster, namespace, job)
    cluster.kubectl("-n", namespace, "wait", "--for=condition=Complete", "job/job", "--timeout=20s")


def test_an_unknown_image_says_what_is_known(cluster: Cluster, namespace: str) -> None:
    apply(cluster, namespace, pod("unknown", "x", image="nginx:1.29"))
    eventually(
        lambda: (
            container_status(cluster, namespace, "unknown")["state"].get("waiting", {}).get("reason") == "ErrImagePull"
        )
    )
    message = container_status(cluster, namespace, "unknown")["state"]["waiting"]["message"]
    assert "nginx:1.29" in message
    assert "envoyproxy/envoy" in message
    cluster.add_image("nginx*", ["sleep", "600"])
    apply(cluster, namespace, pod("known", "sleep", "600", image="nginx:1.29"))
    wait_ready(cluster, namespace, "known")


def test_a_forward_survives_its_pods_and_many_connections(cluster: Cluster, namespace: str) -> None:
    apply(cluster, namespace, deployment("web", 1, web_container()), service("web", 8000))
    cluster.kubectl("-n", namespace, "rollout", "status", "deployment/web", "--timeout=30s")
    address = cluster.forward(namespace, "web", 8000)
    first = fetch(address)
    cluster.kubectl("-n", namespace, "delete", "pod", first)
    cluster.kubectl("-n", namespace, "rollout", "status", "deployment/web", "--timeout=30s")
    second = eventually(lambda: fetch(address))
    assert second != first
    with concurrent.futures.ThreadPoolExecutor(200) as pool:
        answers = list(pool.map(lambda _: fetch(address), range(400)))
    assert answers == [second] * 400


def test_the_same_by_a_kubeconfig_alone(cluster: Cluster, namespace: str) -> None:
    """What a user's own cluster offers: kubectl, and port-forward through the API server and the node."""
    apply(cluster, namespace, deployment("web", 1, web_container()), service("web", 8000))
    existing = ExistingCluster(cluster.kubeconfig)
    try:
        existing.kubectl("-n", namespace, "rollout", "status", "deployment/web", "--timeout=30s")
        address = existing.forward(namespace, "web", 8000)
        assert fetch(address).startswith("web-")
        assert existing.forward(namespace, "web", 8000) == address
        with pytest.raises(DevClusterError, match="not found"):
            existing.forward(namespace, "none", 80)
    finally:
        existing.close()


def test_a_node_that_is_killed_starts_its_pods_again(cluster: Cluster, namespace: str) -> None:
    apply(cluster, namespace, deployment("web", 2, web_container()), service("web", 8000))
    cluster.kubectl("-n", namespace, "rollout", "status", "deployment/web", "--timeout=30s")
    address = cluster.forward(namespace, "web", 8000)
    names = {item["metadata"]["name"] for item in get(cluster, namespace, "pods")["items"]}
    processes = [pid for name in names for pid in cluster.pod_pids(namespace, name).values()]
    os.kill(cluster.pid("node"), signal.SIGKILL)
    eventually(
        lambda: not any(Path(f"/proc/{pid}").exists() for pid in processes), what="containers end with their node"
    )
    eventually(lambda: fetch(address) in names, seconds=30, what="the same Pods serve again")
    eventually(lambda: all(container_status(cluster, namespace, name)["ready"] for name in names), seconds=30)


def test_nothing_leads_out(cluster: Cluster) -> None:
    """Neither this machine's loopback nor any other address can be reached from inside."""
    with socket.create_server(("127.0.0.1", 0)) as outside:
        port = outside.getsockname()[1]
        # 192.0.2.1 is an address for documentation: nobody's.
        for host in ("127.0.0.1", "192.0.2.1"):
            code = f"import socket; socket.create_connection(({host!r}, {port}), 2)"
            done = subprocess.run(
                cluster.nsenter(["python3", "-c", code]), capture_output=True, text=True, check=False, timeout=20
            )
            assert "Connection refused" in done.stderr or "Network is unreachable" in done.stderr, done.stderr


GAUGE = """
    import http.server, os, pathlib
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200); self.send_header("Content-Type", "text/plain"); self.end_headers()
            value = pathlib.Path("/load/value").read_text().strip()
            self.wfile.write(f"test_queue_depth {value}\\ntest_total 42\\n".encode())
        def log_message(self, *args): pass
    http.server.ThreadingHTTPServer((os.environ["POD_IP"], 8000), Handler).serve_forever()
"""


def test_an_hpa_scales_on_a_pods_metric_from_prometheus(cluster: Cluster, namespace: str, console: Console) -> None:
    def load(value: int) -> dict[str, Any]:
        return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "load"}, "data": {"value": str(value)}}

    rules = {
        "rules": [
            {
                "seriesQuery": "test_queue_depth",
                "metricsQuery": "sum(<<.Series>>{<<.LabelMatchers>>}) by (<<.GroupBy>>)",
            }
        ],
        "externalRules": [{"seriesQuery": "test_total", "metricsQuery": "max(<<.Series>>{<<.LabelMatchers>>})"}],
    }
    rules_map = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "rules", "labels": {"tierwise.dev/metrics-rules": "true"}},
        "data": {"config.yaml": yaml_text.dump(rules)},
    }
    container = {
        "name": "gauge",
        "image": "python:3.13",
        "command": list(script(GAUGE)),
        "env": [POD_IP],
        "volumeMounts": [{"name": "load", "mountPath": "/load"}],
        "readinessProbe": {"tcpSocket": {"port": 8000}, "periodSeconds": 1},
    }
    annotations = {"prometheus.io/scrape": "true", "prometheus.io/port": "8000"}
    volumes = [{"name": "load", "configMap": {"name": "load"}}]
    target = {"type": "AverageValue", "averageValue": "10"}
    fast = {"stabilizationWindowSeconds": 0, "policies": [{"type": "Pods", "value": 10, "periodSeconds": 1}]}
    hpa = {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "gauge"},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "gauge"},
            "minReplicas": 1,
            "maxReplicas": 3,
            "metrics": [{"type": "Pods", "pods": {"metric": {"name": "test_queue_depth"}, "target": target}}],
            "behavior": {"scaleUp": fast, "scaleDown": fast},
        },
    }
    workload = deployment("gauge", 1, container, annotations=annotations, volumes=volumes)
    del workload["spec"]["replicas"]  # the HPA's
    apply(cluster, namespace, load(10), rules_map, workload, hpa)
    cluster.kubectl("-n", namespace, "rollout", "status", "deployment/gauge", "--timeout=30s")

    def replicas() -> int:
        return int(get(cluster, namespace, "deployment", "gauge")["spec"]["replicas"])

    path = f"/apis/custom.metrics.k8s.io/v1beta1/namespaces/{namespace}/pods/*/test_queue_depth"
    eventually(lambda: json.loads(cluster.kubectl("get", "--raw", path).stdout)["items"], what="the metric is served")
    item = json.loads(cluster.kubectl("get", "--raw", path).stdout)["items"][0]
    assert item["value"] == "10"
    external = f"/apis/external.metrics.k8s.io/v1beta1/namespaces/{namespace}/test_total"
    assert json.loads(cluster.kubectl("get", "--raw", external).stdout)["items"][0]["value"] == "42"
    assert replicas() == 1
    began = time.monotonic()
    apply(cluster, namespace, load(30))
    eventually(lambda: replicas() == 3, seconds=60, what="more load, more replicas")
    console.print(f"HPA up: {time.monotonic() - began:.1f} s")
    cluster.kubectl("-n", namespace, "rollout", "status", "deployment/gauge", "--timeout=30s")
    began = time.monotonic()
    apply(cluster, namespace, load(1))
    eventually(lambda: replicas() == 1, seconds=60, what="less load, fewer replicas")
    console.print(f"HPA down: {time.monotonic() - began:.1f} s")


def test_components_that_are_killed_come_back(cluster: Cluster, namespace: str, console: Console) -> None:
    apply(cluster, namespace, deployment("web", 1, web_container()), service("web", 8000))
    cluster.kubectl("-n", namespace, "rollout", "status", "deployment/web", "--timeout=30s")
    address = cluster.forward(namespace, "web", 8000)
    served = fetch(address)
    for component in ("kube-apiserver", "etcd", "kube-controller-manager", "kube-scheduler", "coredns", "metrics"):
        pid = cluster.pid(component)
        os.kill(pid, signal.SIGKILL)
        began = time.monotonic()
        eventually(lambda component=component, pid=pid: cluster.pid(component) != pid, seconds=10)
        eventually(
            lambda: all(status.ready for status in cluster.status()),
            seconds=40,
            what=f"ready again after {component} was killed",
        )
        console.print(f"{component} killed, all ready again after {time.monotonic() - began:.1f} s")
        assert fetch(address) == served, "the data plane does not care"
    assert container_status(cluster, namespace, served)["restartCount"] == 0
    # And the whole works: a new Pod is scheduled, started and resolved.
    cluster.kubectl("-n", namespace, "scale", "deployment/web", "--replicas=2")
    cluster.kubectl("-n", namespace, "rollout", "status", "deployment/web", "--timeout=30s")
    host = f"web.{namespace}.svc.cluster.local"
    eventually(lambda: len(resolve(cluster, host)) == 2, what="DNS knows the new Pod")
    assert all(status.restarts >= 1 for status in cluster.status() if status.name not in {"supervisor", "node"})


def _processes_of(supervisor: int) -> dict[int, str]:
    """Every process of a cluster's PID namespace: process id to its start time."""
    wanted = Path(f"/proc/{supervisor}/ns/pid").readlink()
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (folder / "ns" / "pid").readlink() == wanted:
                found[int(folder.name)] = (folder / "stat").read_text().rpartition(")")[2].split()[19]
    return found


def _still_there(processes: dict[int, str]) -> list[int]:
    left = []
    for pid, started in processes.items():
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19] == started:
                left.append(pid)
    return left


def _links() -> set[str]:
    return {path.name for path in Path("/sys/class/net").iterdir()}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("crash", [False, True], ids=["down", "crash"])
def test_two_side_by_side_and_nothing_is_left(cluster: Cluster, console: Console, crash: bool) -> None:
    name = f"e2e-{os.getpid()}-second"
    mounts, links = Path("/proc/self/mountinfo").read_text(), _links()
    began = time.monotonic()
    second = clusters.up(name, gpus=8, console=console)
    console.print(f"second cluster: {time.monotonic() - began:.1f} s")
    try:
        assert clusters.up(name, console=console) == second, "up again is the same cluster"
        apply(second, "default", deployment("web", 2, web_container()), service("web", 8000))
        # A program that leaves its session must not get away either.
        apply(second, "default", pod("escape", "sh", "-c", "setsid sleep 600 & setsid -f sleep 601; sleep 600"))
        second.kubectl("rollout", "status", "deployment/web", "--timeout=30s")
        wait_ready(second, "default", "escape")
        assert fetch(second.forward("default", "web", 8000)).startswith("web-")
        node = get(second, "default", "node", "process-node")["status"]["capacity"]
        assert node["nvidia.com/gpu"] == "8"
        first_node = get(cluster, "default", "node", "process-node")
        assert first_node["status"]["capacity"]["nvidia.com/gpu"] == "64"
        assert not cluster.kubectl("-n", "default", "get", "deployments", "-o", "name").stdout
        supervisor = second.pid("supervisor")
        processes = _processes_of(supervisor)
        assert len(processes) > 12
        if crash:
            os.kill(supervisor, signal.SIGKILL)
            eventually(lambda: not _still_there(processes), seconds=10, what="all processes end with the supervisor")
            with pytest.raises(DevClusterError):
                clusters.get(name)
            assert second.state.root.exists()
            # What the crash left in the way of files, the next start clears.
            marker = second.state.root / "marker"
            marker.touch()
            second = clusters.up(name, console=console, monitoring=False)
            assert not marker.exists()
            processes = _processes_of(second.pid("supervisor"))
    finally:
        second.down()
    # The supervisor itself is init's to collect.
    eventually(lambda: not _still_there(processes), seconds=2, what="no process is left")
    assert not State.of(name).root.exists()
    assert Path("/proc/self/mountinfo").read_text() == mounts
    assert _links() == links
    assert cluster.kubectl("get", "--raw", "/readyz").stdout == "ok", "the other one goes on"


def test_helm_installs_and_removes_a_chart(cluster: Cluster, namespace: str, tmp_path: Path) -> None:
    (tmp_path / "templates").mkdir()
    (tmp_path / "Chart.yaml").write_text("apiVersion: v2\nname: small\nversion: 0.1.0\nkubeVersion: '>=1.30.0'\n")
    config = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "made"},
        "data": {"by": "{{ .Release.Name }}"},
    }
    (tmp_path / "templates" / "config.yaml").write_text(yaml_text.dump(config))
    cluster.helm("-n", namespace, "install", "first", str(tmp_path), "--wait")
    assert get(cluster, namespace, "configmap", "made")["data"] == {"by": "first"}
    assert [release["name"] for release in json.loads(cluster.helm("-n", namespace, "list", "-o", "json").stdout)] == [
        "first"
    ]
    cluster.helm("-n", namespace, "uninstall", "first", "--wait")
    assert not cluster.kubectl("-n", namespace, "get", "configmap", "made", "--ignore-not-found", "-o", "name").stdout


@pytest.mark.timeout(900)
def test_go_sources_are_formatted_and_their_own_tests_pass() -> None:
    go = shutil.which("go")
    if go is None:
        pytest.skip("no go on the PATH; the build itself used the one from PyPI")
    # The flags of the build, so that what it compiled is not compiled again; go vet would look at every dependency.
    env = dict(os.environ) | {"CGO_ENABLED": "0", "GOFLAGS": "-trimpath"}
    gofmt = Path(go).resolve().parent / "gofmt"
    done = subprocess.run(
        [str(gofmt), "-l", "."], cwd=GO_SOURCES, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == ""
    test = [go, "test", "-vet=off", "./..."]
    done = subprocess.run(test, cwd=GO_SOURCES, env=env, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
