"""Keys are planted in Secrets of a cluster with Tierwise, used, and searched for in all that anybody could read.

What leaves one gateway, with every way to present a key: tests/envoy/test_planted_keys.py.
"""

import base64
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

import support
from tierwise.devcluster import install
from tierwise.devcluster.cluster import Cluster

NAMESPACE = "planted"
SYSTEM = install.NAMESPACE

_spec = importlib.util.spec_from_file_location("planted", Path(__file__).parents[1] / "tests" / "envoy" / "planted.py")
assert _spec is not None
assert _spec.loader is not None
planted = importlib.util.module_from_spec(_spec)
sys.modules["planted"] = planted
_spec.loader.exec_module(planted)

# Answers as a provider would, or refuses, and prints all that it received.
PROVIDER = """
import http.server, json, sys
class Provider(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        if self.headers.get("transfer-encoding"):
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size); self.rfile.readline()
            self.rfile.readline()
        print(self.path, dict(self.headers), body, flush=True)
        data = json.dumps({"object": "chat.completion", "usage": {"prompt_tokens": 1, "completion_tokens": 1}}).encode()
        self.send_response(int(sys.argv[1]))
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
http.server.ThreadingHTTPServer(("0.0.0.0", 8080), Provider).serve_forever()
"""

PROVIDERS = {"one": "503", "two": "200"}
CONSUMER = "tw-planted-consumer-88d1f0a2b4c6d8"


def provider_key(name: str) -> str:
    return f"sk-planted-{name}-5b1e77aa02c4"


def provider(name: str) -> list[dict[str, Any]]:
    """A Pod that stands for a provider, its Service, the Secret with its key, and the tier."""
    labels = {"app": f"provider-{name}"}
    container = {
        "name": "provider",
        "image": "python:3.13",
        "command": ["python3", "-c", PROVIDER, PROVIDERS[name]],
        "ports": [{"containerPort": 8080}],
        "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1},
    }
    external = {
        "url": f"http://provider-{name}.{NAMESPACE}.svc.cluster.local:8080/v1",
        "allowPlaintext": True,
        "credentialsRef": {"name": f"key-{name}"},
    }
    return [
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": f"provider-{name}", "labels": labels},
            "spec": {"containers": [container], "terminationGracePeriodSeconds": 1},
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": f"provider-{name}"},
            "spec": {"clusterIP": "None", "selector": labels, "ports": [{"port": 8080}]},
        },
        secret(f"key-{name}", token=provider_key(name)),
        {
            "apiVersion": support.API,
            "kind": "ModelTier",
            "metadata": {"name": name},
            "spec": {"model": f"{name}-model", "clearance": "Internal", "external": external},
        },
    ]


def secret(name: str, **data: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data}


@pytest.fixture(scope="module")
def used(platform: Cluster) -> Iterator[Cluster]:
    """Requests went to both providers and to an engine; one configuration was refused."""
    platform.kubectl("create", "namespace", NAMESPACE)
    consumer = {
        "apiVersion": support.API,
        "kind": "Consumer",
        "metadata": {"name": "app"},
        "spec": {"apiKeys": [{"name": "app-key"}]},
    }
    tiers = [{"name": "one", "weight": 100}, {"name": "two", "weight": 0}, {"name": "own", "weight": 0}]
    fallback = {"attempts": 3, "when": ["ServerError", "ConnectFailure"]}
    support.apply(
        platform,
        NAMESPACE,
        *provider("one"),
        *provider("two"),
        support.in_cluster_tier("own"),
        support.policy("all", tiers, fallback=fallback),
        support.policy("engine", [{"name": "own"}]),
        consumer,
        secret("app-key", token=CONSUMER),
    )
    platform.kubectl("wait", "-n", NAMESPACE, "--for=condition=Ready", "pod/provider-one", "pod/provider-two")
    support.wait_ready(platform, NAMESPACE)
    url = f"http://{install.gateway_address(platform)}/v1/chat/completions"
    body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
    first = body | {"model": f"{NAMESPACE}/all"}
    support.until(
        lambda: httpx.post(url, json=first, timeout=20).headers.get("x-tierwise-tier") == "two",
        seconds=60,
        what="both providers' names are known",
    )
    for number in range(20):
        headers = {"authorization": f"Bearer {CONSUMER}", "x-api-key": CONSUMER, "cookie": f"k={CONSUMER}"}
        for model in ("all", "engine", "unknown"):
            asked = body | {"model": f"{NAMESPACE}/{model}", "stream": number % 2 == 0}
            answer = httpx.post(url, json=asked, headers=headers, params={"key": CONSUMER}, timeout=20)
            wanted = {"all": ("two", "2"), "engine": ("own", "1"), "unknown": (None, "0")}[model]
            assert (answer.headers.get("x-tierwise-tier"), answer.headers.get("x-tierwise-attempts")) == wanted
    # Envoy's words about something that it refuses, in statuses, Events and logs.
    no_certificate = "-----BEGIN CERTIFICATE-----\nbm90IGEgY2VydGlmaWNhdGU=\n-----END CERTIFICATE-----\n"
    external = {"url": "https://p.invalid/v1", "caBundle": no_certificate, "credentialsRef": {"name": "key-one"}}
    broken = {"apiVersion": support.API, "kind": "ModelTier", "metadata": {"name": "broken"}}
    support.apply(platform, NAMESPACE, broken | {"spec": {"model": "m", "external": external}})
    support.until(lambda: "trusted CA" in shown(platform, "routingpolicies"), seconds=60, what="Envoy refuses it")
    yield platform
    platform.kubectl("delete", "namespace", NAMESPACE, "--wait=false")


def shown(cluster: Cluster, kinds: str) -> str:
    """Objects of all namespaces, whole."""
    return cluster.kubectl("get", kinds, "-A", "-o", "json", "--show-managed-fields").stdout


def logs(cluster: Cluster, namespace: str, pod: str) -> str:
    return cluster.kubectl("logs", "-n", namespace, pod, "--all-containers").stdout


def envoy_config(cluster: Cluster, *options: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).parent / "tierwise"), "envoy-config", "--kubeconfig", str(cluster.kubeconfig)]
    return subprocess.run([*command, *options], capture_output=True, text=True, timeout=120, check=False)


def everywhere(cluster: Cluster) -> dict[str, str]:
    """All that is to be searched, by name."""
    kinds = (
        "configmaps", "events.events.k8s.io", "modeltiers,routingpolicies,namespacebudgets,consumers", "pods",
        "deployments,replicasets,services,horizontalpodautoscalers,poddisruptionbudgets", "endpointslices", "leases",
    )  # fmt: skip
    places = {f"objects: {each}": shown(cluster, each) for each in kinds}
    for component in ("operator", "gateway"):
        for pod in support.pods(cluster, SYSTEM, f"tierwise.dev/component={component}"):
            name = pod["metadata"]["name"]
            places[f"log of {component} {name}"] = logs(cluster, SYSTEM, name)
    for name in PROVIDERS:
        places[f"upstream {name}"] = logs(cluster, NAMESPACE, f"provider-{name}")
    prometheus = f"http://{cluster.forward('monitoring', 'prometheus', 9090)}/api/v1/series"
    series = httpx.get(prometheus, params={"match[]": '{__name__=~"envoy.*|tierwise.*|vllm.*"}'}, timeout=20)
    assert len(series.json()["data"]) > 100
    places["metrics"] = series.text
    for output in ("json", "yaml"):
        printed = envoy_config(cluster, "-o", output)
        assert printed.returncode == 3, printed.stderr  # what Envoy refuses is told of
        places[f"envoy-config -o {output}"] = printed.stdout + printed.stderr
    places["helm"] = cluster.helm("get", "all", install.RELEASE, "--namespace", SYSTEM).stdout
    for each in json.loads(shown(cluster, "secrets"))["items"]:
        # Helm keeps its releases in Secrets: they are searched like any other.
        name = f"Secret {each['metadata']['namespace']}/{each['metadata']['name']}"
        values = (base64.b64decode(value).decode("utf-8", "replace") for value in (each.get("data") or {}).values())
        places[name] = "\n".join(values)
    return places


def private_key(cluster: Cluster, name: str) -> str:
    """A line out of the middle of a private key of the gateways' channel."""
    data = json.loads(cluster.kubectl("get", "secret", name, "-n", SYSTEM, "-o", "json").stdout)["data"]["tls.key"]
    return max(base64.b64decode(data).decode().splitlines(), key=len)


def test_keys_are_where_they_belong_and_nowhere_else(used: Cluster) -> None:
    keys = [
        *(
            planted.Planted(
                f"provider {name}",
                provider_key(name),
                frozenset({f"Secret {NAMESPACE}/key-{name}", f"upstream {name}"}),
            )
            for name in PROVIDERS
        ),
        planted.Planted("consumer", CONSUMER, frozenset({f"Secret {NAMESPACE}/app-key"})),
        *(
            planted.Planted(name, private_key(used, name), frozenset({f"Secret {SYSTEM}/{name}"}))
            for name in ("tierwise-xds-ca", "tierwise-xds-server", "tierwise-xds-client")
        ),
    ]
    places = everywhere(used)
    print({name: len(text) for name, text in places.items() if not name.startswith("Secret")})
    empty = [name for name, text in places.items() if not text and not name.startswith("Secret")]
    assert not empty
    assert planted.found(keys, places) == planted.expected(keys)


def test_envoy_config_shows_what_gateways_are_served(used: Cluster) -> None:
    """The last good one is served, the newest is refused: as the operator has it, from the same objects."""
    printed = envoy_config(used, "-n", NAMESPACE)
    assert printed.returncode == 3
    found = yaml.safe_load(printed.stdout)["namespaces"][NAMESPACE]
    assert found["lastGood"] is True
    assert "trusted CA" in found["notes"][0]
    assert "the last good one is served" in found["notes"][0]
    clusters = {each["name"] for each in found["resources"] if each["@type"].endswith(".Cluster")}
    assert clusters == {f"{NAMESPACE}/{name}" for name in ("one", "two", "own", "one@provider", "two@provider")}
    # Envoy takes the last good one; without the operator's environment callers would have to prove who they are.
    checked = envoy_config(used, "-n", NAMESPACE, "--validate")
    assert checked.returncode == 3, checked.stderr
    shared = yaml.safe_load(envoy_config(used).stdout)["shared"]["resources"]
    assert not any(each["@type"].endswith(".TypedExtensionConfig") for each in shared)


def test_the_admin_interface_is_in_the_gateways_pod_alone(used: Cluster) -> None:
    (pod, *_) = support.pods(used, SYSTEM, "tierwise.dev/component=gateway")
    name, address = pod["metadata"]["name"], pod["status"]["podIP"]
    listing = used.kubectl("exec", "-n", SYSTEM, name, "--", "ls", "-l", "/run/tierwise/admin.sock", check=False)
    if listing.returncode == 0:
        assert listing.stdout.startswith("srw-------"), listing.stdout
    script = (
        "import http.client, sys\n"
        "for port, path in ((9901, '/config_dump'), (9901, '/stats'), (9902, '/active'), (9902, '/drain')):\n"
        "    try:\n"
        "        asked = http.client.HTTPConnection(sys.argv[1], port, timeout=3)\n"
        "        asked.request('GET', path)\n"
        "        print(port, path, asked.getresponse().status)\n"
        "    except OSError as error:\n"
        "        print(port, path, type(error).__name__)\n"
    )
    asked = subprocess.run(
        used.nsenter([sys.executable, "-c", script, address]), capture_output=True, text=True, timeout=60, check=True
    )
    assert asked.stdout.splitlines() == [
        "9901 /config_dump 404",
        "9901 /stats 404",
        "9902 /active ConnectionRefusedError",
        "9902 /drain ConnectionRefusedError",
    ]
