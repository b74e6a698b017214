"""The load generator against the simulator, and the simulator's process against the offline model."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time

import aiohttp
import pytest

from tierwise.engine.app import running
from tierwise.engine.options import parse
from tierwise.sim import loadgen, traces
from tierwise.sim.batching import Batcher, Sequence
from tierwise.sim.outcome import Record, summarise
from tierwise.sim.profiles import profile
from tierwise.sim.replica import Objective
from tierwise.sim.traces import TraceRequest


def options(**environment):
    defaults = {"TIERWISE_SIM_PROFILE": "qwen3-8b/h200", "TIERWISE_SIM_REQUEST_LOG": "off"}
    return parse(["m", "--host", "127.0.0.1", "--port", "0"], {**defaults, **environment})


def to(port, **changes):
    return loadgen.LoadOptions(url=f"http://127.0.0.1:{port}/v1", model="m", **changes)


async def test_prompts_and_outputs_are_exact_and_times_are_measured():
    trace = [TraceRequest(0.02 * number, 10 + 37 * number, 1 + 3 * number) for number in range(12)]
    seen = []
    async with running(options(TIERWISE_SIM_TOKENS_PER_CHUNK="4")) as (_, port, _):
        records = await loadgen.replay(trace, to(port, tier_header="x-tierwise-simulator"), seen.append)
    assert [record.index for record in records] == list(range(12))
    assert sorted(record.index for record in seen) == list(range(12))
    assert [record.prompt_tokens for record in records] == [request.prompt_tokens for request in trace]
    assert [record.completion_tokens for record in records] == [request.output_tokens for request in trace]
    assert all(record.served and record.tier == "true" for record in records)
    assert all(0 < record.ttft_seconds <= record.latency_seconds for record in records)
    assert records[0].inter_token_seconds is None
    assert all(record.sent_seconds >= record.planned_seconds for record in records)


async def test_without_streaming_there_is_no_time_to_first_token():
    async with running(options()) as (_, port, _):
        (record,) = await loadgen.replay([TraceRequest(0.0, 5, 7)], to(port, stream=False))
    assert (record.status, record.completion_tokens, record.ttft_seconds) == (200, 7, None)
    assert not record.attained(Objective(ttft_seconds=10))
    assert record.attained(Objective(latency_seconds=10))


async def test_failures_are_records():
    trace = [TraceRequest(0.0, 5, 50)] * 2
    async with running(options(TIERWISE_SIM_FAULTS="outage=true;status=500")) as (_, port, _):
        records = await loadgen.replay(trace, to(port))
    assert [(record.status, record.error) for record in records] == [(500, "status 500")] * 2
    async with running(options(TIERWISE_SIM_FAULTS="cut_after_tokens=5")) as (_, port, _):
        (record,) = await loadgen.replay(trace[:1], to(port))
    assert record.error == "ClientPayloadError"
    async with running(options(TIERWISE_SIM_FAULTS="stall_after_tokens=5")) as (_, port, _):
        (record,) = await loadgen.replay(trace[:1], to(port, timeout_seconds=0.5))
    assert record.error == "timeout"
    (record,) = await loadgen.replay(trace[:1], to(1))
    assert (record.status, record.error) == (0, "ClientConnectorError")
    summary = summarise([record], {})
    assert summary.errors == {"ClientConnectorError": 1}
    assert summary.worst_attainment == 0


async def test_both_bounds_hold():
    trace = [TraceRequest(0.0, 5, 200)] * 6
    async with running(options()) as (server, port, _):
        records = await loadgen.replay(trace, to(port, max_in_flight=4))
        assert server.received == 4
    assert [record.error for record in records].count("not sent: too many in flight") == 2
    with pytest.raises(loadgen.LoadError, match="clip or thin"):
        await loadgen.replay(trace, to(1, max_requests=5))


def test_a_stream_that_ends_early_or_fails_inside_is_no_success():
    text = b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n'
    cut = loadgen._Measured()
    cut.feed(text, 1.0)
    cut.end()
    assert cut.error == "stream ended early"
    failed = loadgen._Measured()
    failed.feed(text + b'data: {"error":{"message":"no"}}\n\ndata: [DONE]\n\n', 1.0)
    failed.end()
    assert failed.error == "error in stream"


def test_a_stream_in_any_pieces_measures_the_first_text():
    role = b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n'
    text = b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n'
    end = b'data: {"choices":[],"usage":{"prompt_tokens":4,"completion_tokens":2}}\n\ndata: [DONE]\n\n'
    data = role + text + text + end
    for size in (1, 7, 50, 1000):
        measured = loadgen._Measured()
        for now, start in enumerate(range(0, len(data), size)):
            measured.feed(data[start : start + size], float(now))
        measured.end()
        assert measured.error is None
        assert (measured.prompt_tokens, measured.completion_tokens) == (4, 2)
        assert measured.first == (len(role + text) - 1) // size


def test_summary_by_hand():
    def record(index, kind, ttft, gap, **changes):
        values = {"status": 200, "tier": "a", "latency_seconds": 1.0, "prompt_tokens": 5, "completion_tokens": 7}
        return Record(index, kind, 0.0, 0.0, ttft_seconds=ttft, inter_token_seconds=gap, **{**values, **changes})

    records = [
        record(0, "routine", 0.1, 0.02),
        record(1, "routine", 0.9, 0.02, tier="b"),
        record(2, "routine", 0.1, 0.09),
        record(3, "complex", 0.1, None),
        Record(4, "complex", 0.0, status=503, error="status 503"),
    ]
    summary = summarise(records, {"routine": Objective(0.5, 0.05)})
    assert summary.kinds["routine"].attained == 1
    assert summary.kinds["routine"].tiers == {"a": 2, "b": 1}
    assert (summary.kinds["routine"].ttft.p50, summary.kinds["routine"].ttft.p95) == (0.1, 0.9)
    assert summary.kinds["complex"].attainment == 0.5
    assert summary.overall.attainment == pytest.approx(2 / 5)
    assert summary.worst_attainment == pytest.approx(1 / 3)
    assert (summary.overall.prompt_tokens, summary.overall.completion_tokens) == (20, 28)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def offline(params, trace):
    """The same trace on one replica in simulated time: mean gap and mean time to first token."""
    batcher = Batcher(params)
    sequences = []
    for request in trace:
        batcher.advance(request.t_seconds)
        sequence = Sequence(request.prompt_tokens, request.output_tokens, request.t_seconds)
        batcher.submit(sequence)
        sequences.append(sequence)
    batcher.advance(1e6)
    gaps = [sequence.inter_token_seconds for sequence in sequences]
    return sum(gaps) / len(gaps), sum(sequence.ttft_seconds for sequence in sequences) / len(sequences)


@pytest.mark.parametrize(("name", "rate"), [("qwen3-8b/h100", 6.0), ("qwen3-8b/h100", 14.0)])
async def test_process_agrees_with_offline_model_and_drains(tmp_path, name, rate):
    lengths = traces.Lengths(400, 0.3, 100, 900), traces.Lengths(120, 0.3, 50, 240)
    spec = traces.TraceSpec(
        seed=9,
        duration_seconds=4,
        base_rps=rate,
        peak_rps=rate,
        variation=1.0,
        bursts=(),
        kinds=(traces.Kind("routine", 1, *lengths),),
    )
    trace = traces.generate(spec)
    log, port = tmp_path / "requests.jsonl", free_port()
    environment = {
        **os.environ,
        "TIERWISE_SIM_PROFILE": name,
        "TIERWISE_SIM_REQUEST_LOG": str(log),
        "TIERWISE_SIM_TOKENS_PER_CHUNK": "8",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "tierwise.engine", "serve", "m", "--host", "127.0.0.1", "--port", str(port)],
        env=environment,
        stderr=subprocess.PIPE,
    )
    try:
        await ready(port)
        records = await loadgen.replay(trace, to(port))
        late = asyncio.create_task(loadgen.replay([TraceRequest(0.0, 50, 100)], to(port)))
        await asyncio.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        (last,) = await late
        assert last.served
        _, errors = await asyncio.to_thread(process.communicate, timeout=20)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0
    assert b"SIMULATOR" in errors
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(lines) == len(trace) + 1
    assert {line["outcome"] for line in lines} == {"finished"}
    assert sum(line["completion_tokens"] for line in lines) == sum(r.output_tokens for r in trace) + 100
    gap, ttft = offline(profile(name).params, trace)
    counted = lines[: len(trace)]
    engine_gap = sum(line["inter_token_ms"] for line in counted) / len(counted) / 1e3
    engine_ttft = sum(line["ttft_ms"] for line in counted) / len(counted) / 1e3
    client_gap = sum(record.inter_token_seconds for record in records) / len(records)
    print(
        f"{name} at {rate}/s: offline {gap * 1e3:.2f} ms, process {engine_gap * 1e3:.2f}, client {client_gap * 1e3:.2f}"
    )
    print(f"   time to first token: offline {ttft * 1e3:.1f} ms, process {engine_ttft * 1e3:.1f}")
    assert engine_gap == pytest.approx(gap, rel=0.10)
    # A starved machine delivers arrivals in clumps and reads late; it can not make either faster than the model.
    assert 0.9 * gap < client_gap < 2.5 * gap
    assert 0.65 * ttft < engine_ttft < ttft + 0.25


async def ready(port):
    async with asyncio.timeout(30), aiohttp.ClientSession() as session:
        begun = time.monotonic()
        while True:
            try:
                async with session.get(f"http://127.0.0.1:{port}/health") as response:
                    if response.status == 200:
                        return time.monotonic() - begun
            except aiohttp.ClientConnectionError:
                pass
            await asyncio.sleep(0.1)
