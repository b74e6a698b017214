"""Two minutes of what `make soak` does for thirty: nobody is hurt while everything moves."""

from pathlib import Path
from typing import Any

import pytest

import soak
import soak_verdict
from soak_verdict import Upstream
from tierwise.devcluster.cluster import Cluster

SECONDS = 120
STREAMS = 200


def record(**over: Any) -> dict[str, Any]:
    whole = {
        "stream": True, "marked": False, "begin": 1.0, "first": 1.1, "end": 4.0, "status": 200, "tier": "scaled",
        "attempts": "1", "id": "chatcmpl-7-1", "whole": True, "error": "", "gateway": "a",
    }  # fmt: skip
    return whole | over


def test_the_verdict_can_be_each_of_them() -> None:
    upstream = Upstream(broken=frozenset({"7-1"}))
    cut, failed = record(whole=False), record(whole=False, status=503, first=1.1)

    def counts(*records: dict[str, Any], of: Upstream = upstream) -> tuple[int, ...]:
        v = soak_verdict.judge(records, of, "provider")
        return v.streams, v.answers, len(v.excused), len(v.cut), len(v.failed), len(v.leaked)

    assert counts(record(), record(stream=False)) == (1, 1, 0, 0, 0, 0)
    # Only the upstream's own word for this very request excuses a cut, and only after the first byte.
    assert counts(cut) == (0, 0, 1, 0, 0, 0)
    assert counts(cut | {"id": "chatcmpl-8"}) == (0, 0, 0, 1, 0, 0)
    assert counts(cut | {"id": ""}, of=Upstream(broken=frozenset({""}))) == (0, 0, 0, 1, 0, 0)
    assert counts(cut, of=Upstream()) == (0, 0, 0, 1, 0, 0)
    assert counts(cut | {"first": 0}) == (0, 0, 0, 0, 1, 0)
    assert counts(failed) == (0, 0, 0, 0, 1, 0)
    assert counts(record(whole=False, status=0, first=0)) == (0, 0, 0, 0, 1, 0)
    assert counts(record(marked=True), record(marked=True, tier="provider"), record(tier="provider")) == (
        *(3, 0, 0, 0, 0, 1),
    )


def test_upstreams_are_asked_in_their_own_words(tmp_path: Path) -> None:
    def log(pod: str, *entries: str) -> None:
        folder = tmp_path / f"soak_{pod}_uid" / "api"
        folder.mkdir(parents=True)
        (folder / "0.log").write_text("starts\n" + "\n".join(entries) + "\n")

    def entry(outcome: str, request: str, more: str = "") -> str:
        return f'{{"event":"request","outcome":"{outcome}","request_id":"{request}","status":200{more}}}'

    log("scaled-1", entry("finished", "1"), entry("aborted", "2"))
    log("scaled-2", entry("finished", "3"))
    log("provider-1", entry("aborted", "4", ',"why":"fault: stream cut"'), '{"event":"request","outcome":"failed",'
        '"request_id":"5","status":0,"why":"fault: connection reset"}')  # fmt: skip
    found = soak_verdict.read_upstreams(tmp_path, "soak", {"scaled-": "scaled", "provider-": "provider"})
    assert found == Upstream(frozenset({"4"}), {"connection reset": 1}, 2, {"scaled": 2, "provider": 0})


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_two_minutes_in_which_everything_moves(platform: Cluster, tmp_path: Path) -> None:
    soak.set_up(platform)
    try:
        found = soak.run(platform, SECONDS, STREAMS, tmp_path)
    finally:
        platform.kubectl("delete", "namespace", soak.NAMESPACE, "--wait=false")
    print(f"\n{found}")
    assert found.problems == []
    assert found.verdict.cut == ()
    assert found.verdict.failed == ()
    assert found.verdict.leaked == ()
    # It was what it says: full load, and everything moved while it ran.
    mean, _ = soak_verdict.open_streams(found.records)
    assert mean > 0.95 * STREAMS
    assert found.verdict.streams > STREAMS * SECONDS / 15
    assert found.verdict.excused, "the provider broke streams"
    assert len(found.verdict.excused) <= len(found.upstream.broken)
    assert sum(found.upstream.refused.values()) > 50
    moves = found.moves
    # A busy machine moves them a little later than each second.
    assert moves["weight moves"] > 0.6 * SECONDS
    assert moves["route configurations that gateways took, sum"] > SECONDS
    assert moves["scale moves"] >= 6
    assert moves["tier roll-outs"] >= 2
    assert moves["gateway restarts (rolling, both)"] >= 2
    assert moves["operator restarts (rolling, both)"] >= 2
    assert moves["periods in which the provider failed"] >= len(soak.FAULTS)
    assert found.upstream.servers[soak.SCALED] >= 4
    assert found.upstream.servers[soak.ROLLED] >= 6
    assert len({record["gateway"] for record in found.records if record["whole"]}) >= 6
