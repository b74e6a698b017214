"""Real engines' command lines start the simulator; the environment sets what only a simulator has."""

import pytest

from tierwise.engine.faults import FaultError, Faults
from tierwise.engine.options import OptionError, human_tokens, parse
from tierwise.sim.profiles import UnknownProfileError


@pytest.mark.parametrize(
    "words",
    [
        ["vllm", "serve", "Qwen/Qwen3-8B", "--served-model-name", "small", "Qwen/Qwen3-8B", "--port", "9000"],
        ["serve", "Qwen/Qwen3-8B", "--served-model-name=small", "--port=9000"],
        ["--model", "Qwen/Qwen3-8B", "--port", "9000", "--served_model_name", "small"],
        ["--model-path=Qwen/Qwen3-8B", "--served-model-name=small", "--port=9000"],
        ["python3", "-m", "sglang.launch_server", "--model-path=Qwen/Qwen3-8B",
            "--served-model-name=small", "--port=9000"],
        [
            "python", "-m", "vllm.entrypoints.openai.api_server", "--model", "Qwen/Qwen3-8B", "--port", "9000",
            "--served-model-name", "small",
        ],
    ],
)  # fmt: skip
def test_ways_to_start(words):
    options = parse(words, {})
    assert options.model == "Qwen/Qwen3-8B"
    assert options.served_names[0] == "small"
    assert options.port == 9000
    assert options.profile.name == "qwen3-8b/l40s"


def test_what_is_not_known_is_ignored_and_named():
    options = parse(
        [
            "Qwen/Qwen3-32B", "--gpu-memory-utilization", "0.95", "--enable-prefix-caching", "-tp", "2",
            "--max-model-len", "16k", "--max-num-seqs", "64", '--override-generation-config={"a": -1}', "--seed", "-1",
            "--shutdown-timeout=45",
        ],
        {},
    )  # fmt: skip
    assert options.ignored == (
        "--gpu-memory-utilization 0.95",
        "--enable-prefix-caching",
        '--override-generation-config {"a": -1}',
        "--seed -1",
    )
    assert (options.max_model_len, options.max_num_seqs, options.drain_limit_seconds) == (16000, 64, 45)
    assert options.profile.name == "qwen3-32b/2xh100"
    assert options.served_names == ("Qwen/Qwen3-32B",)


def test_settings_of_the_environment():
    options = parse(
        ["any/model"],
        {
            "TIERWISE_SIM_PROFILE": "qwen3-32b/2xa100",
            "TIERWISE_SIM_STARTUP_SECONDS": "12.5",
            "TIERWISE_SIM_SEED": "7",
            "TIERWISE_SIM_TOKENS_PER_CHUNK": "8",
            "TIERWISE_SIM_WAKE_MS": "80",
            "TIERWISE_SIM_FAULTS": "error_rate=0.25; status=500; outage",
            "TIERWISE_SIM_REQUEST_LOG": "off",
            "VLLM_API_KEY": "k",
        },
    )
    assert options.profile.name == "qwen3-32b/2xa100"
    assert (options.startup_seconds, options.seed, options.tokens_per_chunk) == (12.5, 7, 8)
    assert options.wake_seconds == pytest.approx(0.08)
    assert options.faults == Faults(outage=True, error_rate=0.25, status=500)
    assert (options.request_log, options.api_keys) == ("off", ("k",))


def test_a_provider():
    options = parse(["--provider", "--api-key", "a", "b", "--base-path", "openai/v1/", "--rate-limit-rpm", "60"], {})
    assert options.is_provider
    assert options.served_names == ("claude-sonnet-4-5",)
    assert (options.api_keys, options.base_path, options.rate_limit_rpm) == (("a", "b"), "/openai/v1", 60)
    with pytest.raises(OptionError, match="bearer key"):
        parse(["--provider"], {})


@pytest.mark.parametrize(
    ("words", "environment", "message"),
    [
        (["m", "--port", "x"], {}, "--port is 'x'; write a number"),
        (["m", "--port", "70000"], {}, "at most 65535"),
        (["m", "--port"], {}, "--port takes one value"),
        (["m", "--port", "1", "2"], {}, "--port takes one value"),
        (["m", "--max-model-len", "many"], {}, "32768, 32k or 32K"),
        (["m", "extra"], {}, "'extra' is no option"),
        (["m", "--tls-cert", "c.pem"], {}, "go together"),
        (["m"], {"TIERWISE_SIM_STARTUP_SECONDS": "-1"}, "TIERWISE_SIM_STARTUP_SECONDS is '-1'"),
        (["m"], {"TIERWISE_SIM_WAKE_MS": "1"}, "at least 20"),
    ],
)
def test_bad_options_name_the_remedy(words, environment, message):
    with pytest.raises(OptionError, match=message):
        parse(words, environment)


def test_unknown_profiles_and_faults():
    with pytest.raises(UnknownProfileError, match="there are"):
        parse(["m"], {"TIERWISE_SIM_PROFILE": "x/y"})
    for text, message in (
        ("nope=1", "no fault 'nope'; there are"),
        ("error_rate=2", "between 0 and 1"),
        ("status=200", "between 400 and 599"),
        ("outage=maybe", "true or false"),
        ("slow=0", "above 0"),
        ("status=x", "write a number"),
        ("cut_after_tokens=-1", "not be negative"),
    ):
        with pytest.raises(FaultError, match=message):
            Faults.parse(text)


@pytest.mark.parametrize(("text", "tokens"), [("32768", 32768), ("32k", 32000), ("32K", 32768), ("0.5m", 500000)])
def test_human_numbers(text, tokens):
    assert human_tokens(text) == tokens
