import re

import pytest
from tiers import container, pod, tier

from tierwise.api.in_cluster import Engine, ScalingSignal
from tierwise.core import engines
from tierwise.engine import llamacpp, options

LLAMA = {"engine": "LlamaCpp", "image": "ghcr.io/ggml-org/llama.cpp:server-b6000"}


def test_vllm_serves_under_the_tiers_model_name() -> None:
    rendered = container(tier(args=["--max-model-len=16384"]))["args"]
    assert rendered[:2] == ["Qwen/Qwen3-8B", "--served-model-name=qwen3-8b"]
    assert rendered[-1] == "--max-model-len=16384"
    read = options.parse(rendered, {})
    assert (read.model, read.served_names, read.port, read.max_model_len) == (
        "Qwen/Qwen3-8B",
        ("qwen3-8b",),
        8000,
        16384,
    )


def test_without_a_source_the_served_name_is_loaded() -> None:
    assert container(tier(modelSource=None))["args"][0] == "qwen3-8b"


def test_sglang_exposes_its_metrics() -> None:
    rendered = container(tier(engine="SGLang", image="lmsysorg/sglang:v0.6"))["args"]
    assert "--enable-metrics" in rendered
    assert rendered[:4] == ["python3", "-m", "sglang.launch_server", "--model-path=Qwen/Qwen3-8B"]
    assert "--port=30000" in rendered


def test_llama_cpp_loads_a_file_or_a_repository() -> None:
    file = container(tier(**LLAMA, modelSource="/models/small.gguf"))["args"]
    assert file[:2] == ["--model", "/models/small.gguf"]
    repository = container(tier(**LLAMA, modelSource="ggml-org/gemma-3-270m-it-GGUF"))["args"]
    assert repository[:2] == ["--hf-repo", "ggml-org/gemma-3-270m-it-GGUF"]
    read = llamacpp.parse(file)
    assert (read.alias, read.port, read.metrics, read.host) == ("qwen3-8b", 8080, True, "0.0.0.0")  # noqa: S104


def test_a_command_of_ones_own_gets_no_preset() -> None:
    own = container(tier(command=["/serve"], args=["--fast"]))
    assert (own["command"], own["args"]) == (["/serve"], ["--fast"])


@pytest.mark.parametrize("grace", [0, 1, 2, 5, 30, 120, 3600])
def test_the_engine_drains_within_its_grace(grace: int) -> None:
    """The API server refuses a pause that is longer than the grace period, and one of no length."""
    rendered = container(tier(terminationGracePeriodSeconds=grace))
    pause = rendered.get("lifecycle", {"preStop": {"sleep": {"seconds": 0}}})["preStop"]["sleep"]["seconds"]
    (stated,) = (a for a in rendered["args"] if a.startswith("--shutdown-timeout="))
    own_drain = int(stated.partition("=")[2])
    assert 0 <= pause <= 10
    assert ("lifecycle" in rendered) == (pause > 0)
    assert pause + own_drain <= grace
    if grace >= 30:
        assert pause == 10
        assert own_drain == grace - 15


def test_the_users_environment_wins_over_the_presets() -> None:
    env = [
        {"name": "HOME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "B", "value": "1"},
        {"name": "A", "value": "$(B)"},
    ]
    rendered = container(tier(env=env))["env"]
    assert [variable["name"] for variable in rendered] == ["USER", "HOME", "B", "A"]
    assert "value" not in rendered[1]


def test_home_is_writable() -> None:
    rendered = container(tier())
    home = next(v["value"] for v in rendered["env"] if v["name"] == "HOME")
    mounted = {mount["mountPath"]: mount["name"] for mount in rendered["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod(tier())["volumes"]}
    assert volumes[mounted[home]]["emptyDir"] == {}
    assert volumes[mounted["/dev/shm"]]["emptyDir"] == {"medium": "Memory"}


def test_a_tier_overrides_one_metric_and_keeps_the_others() -> None:
    own = tier(metrics={"names": {"runningRequests": "my_running"}}).spec.in_cluster
    assert own is not None
    names = engines.metric_names(own)
    assert names.running == ("my_running",)
    assert names.waiting == ("vllm:num_requests_waiting",)
    assert engines.signal_metric(own) == "my_running"


@pytest.mark.parametrize("engine", [e for e in Engine if e is not Engine.CUSTOM])
def test_every_known_engine_has_a_metric_for_the_default_signal_and_a_target(engine: Engine) -> None:
    preset = engines.PRESETS[engine]
    assert preset.metrics.running
    assert set(preset.targets) == set(ScalingSignal)


def test_metric_names_are_prometheus_names() -> None:
    for name in engines.scaling_metrics():
        assert re.fullmatch(r"[a-zA-Z_:][a-zA-Z0-9_:]*", name)
