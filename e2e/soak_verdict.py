"""What a soak has shown: the client's records held against the upstreams' own logs. No I/O but reading these files."""

import json
import statistics
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RAMP_SECONDS = 5.0
"""Until all clients are there, and from when they go."""


@dataclass(frozen=True, slots=True)
class Upstream:
    """What upstreams say about the requests that they had.

    Attributes:
        broken: ids of requests whose stream the upstream itself cut after its first byte.
        refused: outcome or status -> requests that an upstream failed before the first byte of its answer.
        served: requests that an upstream answered to their end.
        servers: Pods that answered at least one request, by tier.
    """

    broken: frozenset[str] = frozenset()
    refused: Mapping[str, int] = field(default_factory=dict)
    served: int = 0
    servers: Mapping[str, int] = field(default_factory=dict)


def read_records(path: Path) -> list[dict[str, Any]]:
    """The client's records."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def read_upstreams(folder: Path, namespace: str, tier_of: Mapping[str, str]) -> Upstream:
    """The request logs of all Pods of a namespace, also of those that are gone.

    Args:
        folder: of the process node's logs, `<namespace>_<pod>_<uid>/<container>/<restart>.log`.
        namespace: whose.
        tier_of: beginning of a Pod's name -> its tier.
    """
    broken, refused, served = set(), Counter[str](), 0
    servers: dict[str, set[str]] = {tier: set() for tier in tier_of.values()}
    for path in sorted(folder.glob(f"{namespace}_*/*/*.log")):
        pod = path.parent.parent.name.split("_")[1]
        tier = next((tier for start, tier in tier_of.items() if pod.startswith(start)), "other")
        with path.open(errors="replace") as lines:
            for line in lines:
                if '"event":"request"' not in line:
                    continue
                entry = json.loads(line)
                if entry["outcome"] == "finished":
                    served += 1
                    servers.setdefault(tier, set()).add(pod)
                elif entry["outcome"] == "aborted" and str(entry.get("why", "")).startswith("fault"):
                    broken.add(entry["request_id"])
                elif entry["outcome"] in {"failed", "rejected"}:
                    refused["connection reset" if not entry["status"] else f"status {entry['status']}"] += 1
    return Upstream(frozenset(broken), refused, served, {tier: len(found) for tier, found in servers.items()})


@dataclass(frozen=True, slots=True)
class Verdict:
    """Every request belongs to exactly one of the first five.

    Attributes:
        streams, answers: whole ones.
        excused: streams cut because their own upstream broke them after its first byte, as that upstream's log says.
        cut: streams cut otherwise. None is allowed.
        failed: requests that got no answer, or an error. None is allowed: an allowed tier lives all the time.
        leaked: requests that reached a tier that is not cleared for them. None is allowed.
    """

    streams: int
    answers: int
    excused: tuple[Mapping[str, Any], ...]
    cut: tuple[Mapping[str, Any], ...]
    failed: tuple[Mapping[str, Any], ...]
    leaked: tuple[Mapping[str, Any], ...]

    @property
    def violations(self) -> int:
        """Of the three promises."""
        return len(self.cut) + len(self.failed) + len(self.leaked)


def judge(records: Iterable[Mapping[str, Any]], upstream: Upstream, uncleared: str) -> Verdict:
    """Hold records against the promises.

    Args:
        records: of the client.
        upstream: what upstreams say.
        uncleared: the tier that marked requests must not reach.
    """
    whole: Counter[bool] = Counter()
    excused, cut, failed, leaked = [], [], [], []
    for record in records:
        if record["marked"] and record["tier"] == uncleared:
            leaked.append(record)
        if record["whole"]:
            whole[record["stream"]] += 1
        elif record["status"] == 200 and record["first"]:
            own = record["id"].partition("-")[2]
            (excused if own and own in upstream.broken else cut).append(record)
        else:
            failed.append(record)
    return Verdict(whole[True], whole[False], tuple(excused), tuple(cut), tuple(failed), tuple(leaked))


def open_streams(records: Sequence[Mapping[str, Any]]) -> tuple[float, int]:
    """Mean and least number of streams open at the same time, each half second, without the first and last seconds."""
    streams = [record for record in records if record["stream"]]
    if not streams:
        return 0.0, 0
    first = min(record["begin"] for record in streams) + RAMP_SECONDS
    last = max(record["begin"] for record in streams) - 0.5
    begins, ends = (sorted(record[key] for record in streams) for key in ("begin", "end"))
    moments = [first + 0.5 * step for step in range(max(1, int((last - first) / 0.5)))]
    counts = [bisect_right(begins, at) - bisect_right(ends, at) for at in moments]
    return statistics.mean(counts), min(counts)


def table(
    records: Sequence[Mapping[str, Any]], upstream: Upstream, verdict: Verdict, moves: Mapping[str, int], seconds: float
) -> str:
    """Everything that was counted, as Markdown."""
    mean, least = open_streams(records)
    first = sorted(r["first"] - r["begin"] for r in records if r["stream"] and r["first"])
    tiers = Counter(record["tier"] for record in records if record["whole"])
    attempts = Counter(record["attempts"] for record in records if record["whole"])
    rows = [
        ("seconds of load", f"{seconds:.0f}"),
        ("requests", len(records)),
        ("streams open at the same time, mean (least)", f"{mean:.0f} ({least})"),
        ("streams that came whole", verdict.streams),
        ("answers in one piece that came whole", verdict.answers),
        ("streams that their own upstream broke after the first byte", len(verdict.excused)),
        ("**streams cut otherwise**", f"**{len(verdict.cut)}**"),
        ("**requests failed**", f"**{len(verdict.failed)}**"),
        ("**requests at a tier that is not cleared**", f"**{len(verdict.leaked)}**"),
        ("streams that upstreams broke, by their own logs", len(upstream.broken)),
        *((f"attempts that upstreams failed: {what}", n) for what, n in sorted(upstream.refused.items())),
        ("requests served by a second or later attempt", sum(n for a, n in attempts.items() if a not in {"", "1"})),
        *((f"answered by {tier}", n) for tier, n in sorted(tiers.items())),
        *((f"Pods of {tier} that answered", n) for tier, n in sorted(upstream.servers.items())),
        ("gateways that answered", len({record["gateway"] for record in records if record["whole"]})),
        *moves.items(),
    ]
    if first:
        at = [f"{first[min(len(first) - 1, int(len(first) * share))] * 1e3:.0f} ms" for share in (0.5, 0.99)]
        rows.append(("time to first byte, median / 99th percentile", " / ".join(at)))
    return "\n".join(["| count | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])
