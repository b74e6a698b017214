"""The server itself, over HTTP on loopback: API, metrics, faults, keys, drain, request log."""

import asyncio
import json
import ssl
import time

import aiohttp
import openai as client
import pytest
import trustme
from prometheus_client.parser import text_string_to_metric_families

from tierwise.engine.app import running
from tierwise.engine.options import parse
from tierwise.engine.requestlog import credential_digest

FAST = {"TIERWISE_SIM_PROFILE": "qwen3-8b/h200", "TIERWISE_SIM_REQUEST_LOG": "off"}


def options(*words, **environment):
    return parse(["m", "--host", "127.0.0.1", "--port", "0", "--admin-port", "0", *words], {**FAST, **environment})


def chat(tokens=3, **values):
    messages = [{"role": "user", "content": "a b c"}]
    return {"model": "m", "messages": messages, "max_tokens": tokens, "ignore_eos": True, **values}


async def metrics(session, port):
    async with session.get(f"http://127.0.0.1:{port}/metrics") as response:
        text = await response.text()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(samples, name, **labels):
    wanted = {"model_name": "m", "engine": "0", **labels}
    return samples[name, tuple(sorted(wanted.items()))]


async def test_the_official_client_chats_and_streams():
    async with running(options()) as (_, port, _):
        api = client.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="any", max_retries=0)
        async with api:
            models = await api.models.list()
            assert [model.id for model in models.data] == ["m"]
            whole = await api.chat.completions.create(
                model="m",
                messages=[{"role": "user", "content": "a b c d"}],
                max_tokens=5,
                extra_body={"ignore_eos": True},
            )
            assert whole.usage.completion_tokens == 5
            assert whole.usage.prompt_tokens == 4
            assert whole.system_fingerprint == "tierwise-simulator"
            stream = await api.chat.completions.create(
                model="m",
                messages=[{"role": "user", "content": "a b"}],
                max_tokens=6,
                stream=True,
                stream_options={"include_usage": True},
                extra_body={"ignore_eos": True},
            )
            events = [event async for event in stream]
            text = "".join(event.choices[0].delta.content or "" for event in events if event.choices)
            assert text == "simulated tokens from a replica model"
            assert events[-1].usage.total_tokens == 8
            completion = await api.completions.create(model="m", prompt="x y", max_tokens=2)
            assert completion.usage.total_tokens == 4
            with pytest.raises(client.NotFoundError):
                await api.chat.completions.create(model="other", messages=[{"role": "user", "content": "x"}])


async def test_it_says_everywhere_that_it_is_a_simulator():
    async with running(options()) as (_, port, _), aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
        for method, path in (("GET", "/health"), ("GET", "/v1/models"), ("GET", "/metrics"), ("POST", "/v1/nothing")):
            async with session.request(method, path) as response:
                assert response.headers["x-tierwise-simulator"] == "true"
        async with session.post("/v1/chat/completions", json=chat()) as response:
            assert response.headers["x-tierwise-simulator"] == "true"
        async with session.get("/version") as response:
            assert (await response.json())["simulator"] is True
        samples = await metrics(session, port)
        assert any(name == "tierwise_engine_simulator_info" for name, _ in samples)


async def test_metrics_count_what_was_served():
    async with running(options()) as (server, port, _), aiohttp.ClientSession() as session:
        url = f"http://127.0.0.1:{port}/v1/chat/completions"
        bodies = [chat(10, stream=bool(number % 2)) for number in range(6)]
        waiting = [asyncio.create_task(fetch(session, url, body)) for body in bodies]
        await asyncio.sleep(0.03)
        during = await metrics(session, port)
        assert value(during, "vllm:num_requests_running") + value(during, "vllm:num_requests_waiting") >= 1
        await asyncio.gather(*waiting)
        samples = await metrics(session, port)
        assert value(samples, "vllm:prompt_tokens_total") == 18
        assert value(samples, "vllm:generation_tokens_total") == 60
        assert value(samples, "vllm:request_success_total", finished_reason="length") == 6
        assert value(samples, "vllm:num_requests_running") == 0
        assert value(samples, "vllm:time_to_first_token_seconds_count") == 6
        assert value(samples, "vllm:inter_token_latency_seconds_count") == 54
        assert value(samples, "vllm:time_per_output_token_seconds_count") == 54
        assert value(samples, "vllm:e2e_request_latency_seconds_count") == 6
        assert value(samples, "vllm:request_generation_tokens_sum") == 60
        assert value(samples, "vllm:inter_token_latency_seconds_bucket", le="+Inf") == 54
        assert value(samples, "vllm:inter_token_latency_seconds_bucket", le="0.01") == pytest.approx(54, abs=6)
        assert server.active == 0


async def fetch(session, url, body):
    async with session.post(url, json=body) as response:
        return response.status, await response.read()


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_goes_away_leaves_the_batch(tmp_path, stream):
    log = tmp_path / "requests.jsonl"
    async with (
        running(options(TIERWISE_SIM_REQUEST_LOG=str(log))) as (server, port, _),
        aiohttp.ClientSession() as session,
    ):
        request = asyncio.create_task(
            fetch(session, f"http://127.0.0.1:{port}/v1/chat/completions", chat(5000, stream=stream))
        )
        await until(lambda: server.scheduler.active == 1)
        await asyncio.sleep(0.1)
        request.cancel()
        await until(lambda: server.active == 0)
        samples = await metrics(session, port)
    assert value(samples, "vllm:num_requests_running") == 0
    assert value(samples, "vllm:request_success_total", finished_reason="abort") == 1
    (line,) = [json.loads(text) for text in log.read_text().splitlines()]
    assert line["outcome"] == "aborted"
    assert 0 <= line["completion_tokens"] < 5000


async def until(condition, seconds=5.0):
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


async def test_request_log_shows_no_credential(tmp_path):
    log = tmp_path / "requests.jsonl"
    headers = {
        "Authorization": "Bearer sk-secret",
        "X-Api-Key": "other-secret",
        "X-Request-Id": "r1",
        "X-Custom": "hidden",
    }
    async with running(options(TIERWISE_SIM_REQUEST_LOG=str(log))) as (_, port, _), aiohttp.ClientSession() as session:
        url = f"http://127.0.0.1:{port}/v1/chat/completions?x=1"
        async with session.post(url, json=chat(4), headers=headers) as response:
            assert response.status == 200
    text = log.read_text()
    assert "secret" not in text
    assert "hidden" not in text
    line = json.loads(text)
    assert line["credential_sha256"]["authorization"] == credential_digest("sk-secret")
    assert {"authorization", "x-custom"} <= set(line["header_names"])
    assert (line["request_id"], line["outcome"], line["model"], line["path"]) == (
        "r1",
        "finished",
        "m",
        "/v1/chat/completions?x=1",
    )
    assert (line["prompt_tokens"], line["completion_tokens"]) == (3, 4)
    assert line["ttft_ms"] > 0
    assert line["inter_token_ms"] == pytest.approx(5.0697 * 1.35, rel=0.1)


async def test_start_up_takes_its_time():
    async with (
        running(options(TIERWISE_SIM_STARTUP_SECONDS="0.3")) as (_, port, _),
        aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session,
    ):
        begun = time.monotonic()
        async with session.get("/health") as response:
            assert response.status == 503
        assert (await fetch(session, "/v1/chat/completions", chat()))[0] == 503
        status = 503
        while status == 503:
            await asyncio.sleep(0.02)
            async with session.get("/health") as response:
                status = response.status
        assert status == 200
        assert time.monotonic() - begun >= 0.25
        assert (await fetch(session, "/v1/chat/completions", chat()))[0] == 200


async def test_draining_finishes_what_runs_and_then_refuses():
    async with (
        running(options(TIERWISE_SIM_DRAIN_ACCEPT_SECONDS="0.2")) as (server, port, _),
        aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session,
    ):
        stream = asyncio.create_task(fetch(session, "/v1/chat/completions", chat(100, stream=True)))
        await until(lambda: server.scheduler.active == 1)
        server.drain()
        async with session.get("/health") as response:
            assert response.status == 503
        assert not server.idle.is_set()
        # Endpoints are told a moment later: what still comes is served at first.
        assert (await fetch(session, "/v1/chat/completions", chat()))[0] == 200
        await asyncio.sleep(0.25)
        assert (await fetch(session, "/v1/chat/completions", chat()))[0] == 503
        status, data = await stream
        assert status == 200
        assert data.endswith(b"data: [DONE]\n\n")
        await asyncio.wait_for(server.idle.wait(), 2)


async def test_faults_are_planted_and_taken_back():
    async with running(options()) as (_, port, admin), aiohttp.ClientSession() as session:
        url = f"http://127.0.0.1:{port}/v1/chat/completions"
        faults = f"http://127.0.0.1:{admin}/faults"

        async def plant(**values):
            async with session.put(faults, json=values) as response:
                return response.status

        assert await plant(outage=True, status=500) == 200
        assert (await fetch(session, url, chat()))[0] == 500
        assert await plant(unhealthy=True) == 200
        async with session.get(f"http://127.0.0.1:{port}/health") as response:
            assert response.status == 503
        assert (await fetch(session, url, chat()))[0] == 200
        assert await plant(reset_rate=1) == 200
        with pytest.raises(aiohttp.ClientError):
            await fetch(session, url, chat())
        assert await plant(cut_after_tokens=2) == 200
        with pytest.raises(aiohttp.ClientError):
            await fetch(session, url, chat(500, stream=True))
        assert await plant(stall_after_tokens=2) == 200
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(fetch(session, url, chat(500, stream=True)), 0.4)
        assert await plant(nonsense=1) == 400
        assert await plant() == 200
        assert (await fetch(session, url, chat(stream=True)))[0] == 200
        async with session.get(f"http://127.0.0.1:{admin}/stats") as response:
            stats = await response.json()
        assert stats["received"] == 6
        assert stats["outcomes"] == {"aborted": 2, "failed": 2, "finished": 2}


async def test_error_rate_is_a_share():
    flaky = options(TIERWISE_SIM_FAULTS="error_rate=0.3")
    async with running(flaky) as (_, port, _), aiohttp.ClientSession() as session:
        url = f"http://127.0.0.1:{port}/v1/chat/completions"
        statuses = [(await fetch(session, url, chat(1)))[0] for _ in range(100)]
    assert 15 <= statuses.count(503) <= 45
    assert statuses.count(200) + statuses.count(503) == 100


async def test_slow_makes_it_slow():
    async with running(options(TIERWISE_SIM_FAULTS="slow=4")) as (_, port, _), aiohttp.ClientSession() as session:
        url = f"http://127.0.0.1:{port}/v1/chat/completions"
        await fetch(session, url, chat(20))
        samples = await metrics(session, port)
    mean = value(samples, "vllm:inter_token_latency_seconds_sum") / 19
    assert mean == pytest.approx(4 * 5.0697e-3 * 1.35, rel=0.1)


async def test_an_engine_with_a_key():
    async with (
        running(options("--api-key", "k")) as (_, port, _),
        aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session,
    ):
        assert (await fetch(session, "/v1/chat/completions", chat()))[0] == 401
        async with session.get("/health") as response:
            assert response.status == 200
        async with session.post("/v1/chat/completions", json=chat(), headers={"Authorization": "Bearer k"}) as response:
            assert response.status == 200


async def test_a_provider_over_tls(tmp_path):
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    pem, key, ca = tmp_path / "c.pem", tmp_path / "k.pem", tmp_path / "ca.pem"
    certificate.cert_chain_pems[0].write_to_path(pem)
    certificate.private_key_pem.write_to_path(key)
    authority.cert_pem.write_to_path(ca)

    settings = parse(
        [
            "--provider", "--served-model-name", "gpt", "--api-key", "sk-one", "--base-path", "/openai/v1",
            "--rate-limit-rpm", "12", "--tls-cert", str(pem), "--tls-key", str(key), "--host", "127.0.0.1",
            "--port", "0",
        ],
        {"TIERWISE_SIM_REQUEST_LOG": "off"},
    )  # fmt: skip
    context = ssl.create_default_context(cafile=str(ca))
    async with running(settings) as (_, port, _), aiohttp.ClientSession(f"https://127.0.0.1:{port}") as session:
        path, body = "/openai/v1/chat/completions", {**chat(20), "model": "gpt"}
        async with session.post(path, json=body, ssl=context) as response:
            assert response.status == 401
            assert (await response.json())["error"]["code"] == "invalid_api_key"
        headers = {"Authorization": "Bearer sk-one"}
        begun = time.monotonic()
        async with session.post(path, json=body, headers=headers, ssl=context) as response:
            assert response.status == 200
            assert (await response.json())["usage"]["completion_tokens"] == 20
        # Median time to first token 0.63 s, then 19 tokens at 65 per second.
        assert 0.6 < time.monotonic() - begun < 3.0
        async with session.post(path, json={**body, "max_tokens": 1}, headers=headers, ssl=context) as response:
            assert response.status == 200
        async with session.post(path, json=body, headers=headers, ssl=context) as response:
            assert response.status == 429
            assert 1 <= int(response.headers["Retry-After"]) <= 5
            assert (await response.json())["error"]["code"] == "rate_limit_exceeded"
