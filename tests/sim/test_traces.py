"""The generator keeps its promises; a bad file is refused with line and remedy."""

import gzip
import statistics
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tierwise.sim import traces
from tierwise.sim.traces import TraceError, TraceRequest, TraceSpec


def test_same_seed_same_trace_other_seed_other():
    spec = TraceSpec(seed=3, duration_seconds=60)
    assert traces.generate(spec) == traces.generate(spec)
    assert traces.generate(spec) != traces.generate(TraceSpec(seed=4, duration_seconds=60))


def test_medians_are_those_of_the_published_conversation_trace():
    requests = traces.generate(TraceSpec(seed=1, duration_seconds=2000, base_rps=5, peak_rps=10))
    assert statistics.median(r.prompt_tokens for r in requests) == pytest.approx(1020, rel=0.05)
    assert statistics.median(r.output_tokens for r in requests) == pytest.approx(129, rel=0.06)
    share = sum(r.kind == "complex" for r in requests) / len(requests)
    assert share == pytest.approx(0.25, abs=0.02)
    assert all((r.kind == "complex") == (r.prompt_tokens >= 1500) for r in requests)


def test_rate_follows_the_curve_and_gaps_are_bursty():
    spec = TraceSpec(seed=2, duration_seconds=4000, base_rps=2, peak_rps=8, bursts=())
    requests = traces.generate(spec)
    low = [r.t_seconds for r in requests if r.t_seconds < 800]
    peak = [r.t_seconds for r in requests if 1800 <= r.t_seconds < 2400]
    assert len(low) / 800 == pytest.approx(2, rel=0.1)
    assert len(peak) / 600 == pytest.approx(8, rel=0.1)
    gaps = [b - a for a, b in pairwise(low)]
    assert statistics.stdev(gaps) / statistics.mean(gaps) == pytest.approx(1.3, rel=0.12)


def test_bursts_are_on_top():
    spec = TraceSpec(duration_seconds=100, bursts=(traces.Burst(0.1, 5.0, 3.0),))
    assert spec.rate(12.0) == pytest.approx(3 * 2.0)
    assert spec.rate(16.0) == pytest.approx(2.0)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    duration=st.floats(1, 60),
    base=st.floats(0.1, 5),
    more=st.floats(1, 3),
    variation=st.floats(0.3, 2.5),
)
def test_any_trace_is_in_order_and_within_bounds(seed, duration, base, more, variation):
    spec = TraceSpec(seed=seed, duration_seconds=duration, base_rps=base, peak_rps=base * more, variation=variation)
    requests = traces.generate(spec)
    times = [r.t_seconds for r in requests]
    assert times == sorted(times)
    assert all(0 <= t <= duration + 0.001 for t in times)
    assert all(r.prompt_tokens >= 16 and r.output_tokens >= 4 for r in requests)


@pytest.mark.parametrize("name", ["trace.csv", "trace.csv.gz"])
def test_written_is_read_again(tmp_path, name):
    requests = traces.generate(TraceSpec(seed=5, duration_seconds=400))
    traces.write(tmp_path / name, requests)
    again = traces.read(tmp_path / name)
    assert [(r.prompt_tokens, r.output_tokens, r.kind) for r in again] == [
        (r.prompt_tokens, r.output_tokens, r.kind) for r in requests
    ]
    assert [r.t_seconds for r in again] == pytest.approx([r.t_seconds for r in requests], abs=1e-3)
    first = (tmp_path / name).read_bytes()
    traces.write(tmp_path / name, requests)
    assert (tmp_path / name).read_bytes() == first


def test_without_class_the_prompt_decides_and_other_columns_are_ignored(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("\ufefft_s,user,prompt_tokens,output_tokens\n0.5,a,1499,0\n1,b,1500,7\n")
    assert traces.read(path) == [TraceRequest(0.5, 1499, 1, "routine"), TraceRequest(1.0, 1500, 7, "complex")]
    assert [r.kind for r in traces.read(path, complex_prompt_tokens=100)] == ["complex", "complex"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("t_s,prompt_tokens\n0,1\n", "line 1 names no column output_tokens"),
        ("", "line 1 names no column t_s"),
        ("t_s,prompt_tokens,output_tokens\n", "no request after the header"),
        ("t_s,prompt_tokens,output_tokens\n0,5,5\nx,5,5\n", "line 3: t_s is 'x'; write seconds"),
        ("t_s,prompt_tokens,output_tokens\n-1,5,5\n", "line 2: t_s is -1"),
        ("t_s,prompt_tokens,output_tokens\nnan,5,5\n", "line 2: t_s is nan"),
        ("t_s,prompt_tokens,output_tokens\n2,5,5\n1,5,5\n", r"line 3: t_s is 1, before the line above \(2\); sort"),
        ("t_s,prompt_tokens,output_tokens\n0,0,5\n", "line 2: prompt_tokens is 0; write a whole number"),
        ("t_s,prompt_tokens,output_tokens\n0,1.5,5\n", "line 2: prompt_tokens is 1.5"),
        ("t_s,prompt_tokens,output_tokens\n0,5,many\n", "line 2: output_tokens is 'many'"),
        ("t_s,prompt_tokens,output_tokens\n0,5,-3\n", "line 2: output_tokens is -3"),
        ("t_s,prompt_tokens,output_tokens\n0,5\n", "line 2 has 2 values but the header has 3"),
    ],
)
def test_bad_files_name_line_and_remedy(tmp_path, text, message):
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(TraceError, match=message):
        traces.read(path)


def test_broken_compression_and_missing_file(tmp_path):
    path = tmp_path / "bad.csv.gz"
    path.write_bytes(gzip.compress(b"t_s,prompt_tokens,output_tokens\n0,1,1\n")[:-9])
    with pytest.raises(TraceError, match="can not be read"):
        traces.read(path)
    with pytest.raises(TraceError, match="can not be read"):
        traces.read(tmp_path / "none.csv")


def test_windows_shares_and_speed():
    requests = [TraceRequest(float(t), 10, 10) for t in range(100)]
    assert [r.t_seconds for r in traces.clip(requests, 10, 3)] == [0, 1, 2]
    assert [r.t_seconds for r in traces.compress(requests, 4)][:3] == [0, 0.25, 0.5]
    kept = traces.thin(requests, 0.5, seed=1)
    assert 30 < len(kept) < 70
    assert kept == traces.thin(requests, 0.5, seed=1)


@pytest.mark.parametrize(
    "changes",
    [
        {"duration_seconds": 0},
        {"base_rps": 0},
        {"base_rps": 9, "peak_rps": 8},
        {"variation": 0},
        {"curve": ((0.0, 1.0), (0.5, 1.0))},
        {"kinds": ()},
    ],
)
def test_settings_without_sense_are_refused(changes):
    with pytest.raises(TraceError):
        TraceSpec(**changes)
