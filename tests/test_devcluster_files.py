"""What the development cluster writes for its programs."""

import json
import ssl
from pathlib import Path

import pytest
import yaml
from cryptography import x509

from tierwise.devcluster import certificates, components, images, paths
from tierwise.devcluster.build import Binaries
from tierwise.devcluster.errors import DevClusterError
from tierwise.devcluster.paths import State


@pytest.fixture
def state(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "MAX_STATE_PATH", 1000)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    made = State.of("test")
    made.make()
    components.write(made, "test", Binaries(Path("/built/bin")), 12345, components.Options(gpus=3))
    return made


def test_state_is_below_the_xdg_folder(state, tmp_path):
    assert state.root == tmp_path / "tierwise" / "clusters" / "test"
    assert state.root.stat().st_mode & 0o777 == 0o700


def test_a_path_too_long_for_a_socket_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / ("x" * 100)))
    with pytest.raises(DevClusterError, match="too long"):
        State.of("test")


@pytest.mark.parametrize("character", [":", ",", "\\"])
def test_a_path_that_an_overlay_can_not_take_is_refused(monkeypatch, character):
    monkeypatch.setenv("XDG_STATE_HOME", f"/a{character}b")
    with pytest.raises(DevClusterError, match="overlay"):
        State.of("test")


def test_components_need_only_components(state):
    config = json.loads(state.config.read_text())
    names = [component["name"] for component in config["components"]]
    assert names[:2] == ["etcd", "kube-apiserver"]
    assert {need for component in config["components"] for need in component["needs"]} <= set(names)
    assert all(
        component["argv"][:2] == ["/built/bin/devcluster", component["name"]] for component in config["components"]
    )
    node = next(component for component in config["components"] if component["name"] == "node")
    assert "--gpus=3" in node["argv"]


def test_every_file_that_a_component_reads_is_written(state):
    config = json.loads(state.config.read_text())
    made_later = {state.root, state.audit_log, state.root / "etcd", state.pki}
    for component in config["components"]:
        for argument in component["argv"]:
            _, _, value = argument.rpartition("=")
            if value.startswith(str(state.root)) and Path(value) not in made_later:
                assert Path(value).is_file(), argument


def test_kubeconfigs_lead_to_the_same_authority(state):
    for file, server in (
        (state.kubeconfig, "https://127.0.0.1:12345"),
        (state.inner_kubeconfig, "https://10.244.0.1:6443"),
    ):
        config = yaml.safe_load(file.read_text())
        assert config["clusters"][0]["cluster"]["server"] == server
        assert file.stat().st_mode & 0o077 == 0, "a key is in it"


def test_certificates_verify_and_name_their_holders(tmp_path):
    issuer = certificates.authority(tmp_path, "ca")
    server = certificates.certificate(
        tmp_path, "server", issuer, common_name="server", hosts=["localhost", "127.0.0.1"]
    )
    client = certificates.certificate(tmp_path, "admin", issuer, common_name="admin", organizations=["system:masters"])
    server.certificate.verify_directly_issued_by(issuer.certificate)
    names = server.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(name.value) for name in names] == ["localhost", "127.0.0.1"]
    assert client.certificate.subject.rfc4514_string() == "CN=admin,O=system:masters"
    assert client.key_file.stat().st_mode & 0o077 == 0
    # OpenSSL reads the pairs and finds that key and certificate belong together.
    for pair in (server, client):
        ssl.create_default_context().load_cert_chain(pair.certificate_file, pair.key_file)


def test_audit_policy_keeps_every_write_and_reads_of_pods_accounts(state):
    policy = json.loads((state.root / "audit-policy.json").read_text())
    assert policy["rules"][0]["level"] == "Metadata"
    assert "patch" in policy["rules"][0]["verbs"]
    assert policy["rules"][2] == {"level": "Metadata", "userGroups": ["system:serviceaccounts"]}


def test_image_table_starts_our_programs(state):
    table = json.loads(state.images.read_text())
    by_glob = {entry["image"]: entry for entry in table}
    assert by_glob["*vllm/vllm-openai*"]["entrypoint"][1:] == ["-m", "tierwise.engine"]
    envoy = by_glob["*envoyproxy/envoy*"]
    assert (Path(envoy["path"][0]) / envoy["entrypoint"][0]).is_file()
    # The first match wins: ours, whose glob is wide, comes last.
    assert table[-1]["image"] == "*tierwise*"


def test_without_envoys_wheel_the_remedy_is_said(monkeypatch):
    monkeypatch.setattr(images.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(DevClusterError, match="pip install"):
        images.envoy_folder()


@pytest.mark.parametrize("path", sorted(paths.MANIFESTS.glob("*.yaml")), ids=lambda path: path.name)
def test_manifests_are_whole(path):
    documents = list(yaml.safe_load_all(path.read_text()))
    assert all({"apiVersion", "kind", "metadata"} <= document.keys() for document in documents)
    for document in documents:
        if document["kind"] == "ConfigMap":
            text = document["data"]["prometheus.yml"]
            assert yaml.safe_load(text.replace("SCRAPE_INTERVAL", "1s"))["global"]["scrape_interval"] == "1s"
