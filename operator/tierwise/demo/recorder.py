"""Collects what is seen during a run: Pods and weights from the API server, answers from the clients' files."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tierwise.demo.pods import PodBook
from tierwise.demo.records import Served
from tierwise.demo.terms import Terms
from tierwise.demo.timeline import Arm, Observed, WeightSeen

ANSWER_PREFIXES = ("chatcmpl-", "cmpl-")


@dataclass(frozen=True, slots=True)
class Move:
    """The operator's last decision, in its own words."""

    at_seconds: float
    text: str


@dataclass(slots=True)
class Recorder:
    """The run's notebook. All times are on the run's clock.

    Attributes:
        arms: compared set-ups. terms: for classes.
        served: answers so far, in the order of their ends.
        ends: arm -> what its client said of itself at its end.
    """

    arms: Sequence[Arm]
    terms: Terms
    book: PodBook = field(default_factory=PodBook)
    weights: list[WeightSeen] = field(default_factory=list)
    served: list[Served] = field(default_factory=list)
    moves: list[Move] = field(default_factory=list)
    ends: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    _offsets: dict[str, int] = field(default_factory=dict)
    _decisions: set[str] = field(default_factory=set)

    @property
    def observed(self) -> Observed:
        """Everything so far."""
        return Observed(tuple(self.book.lives.values()), self.served, self.weights)

    def pod(self, kind: str, document: Mapping[str, Any], at_seconds: float) -> None:
        """A watch event of a Pod."""
        if kind == "DELETED":
            self.book.gone(document, at_seconds)
        elif kind in {"ADDED", "MODIFIED"}:
            self.book.seen(document, at_seconds)

    def policy(self, kind: str, document: Mapping[str, Any], at_seconds: float) -> None:
        """A watch event of a RoutingPolicy: weights in force, and why they moved."""
        if kind not in {"ADDED", "MODIFIED"}:
            return
        metadata = document.get("metadata") or {}
        arm = next((arm for arm in self.arms if arm.namespace == metadata.get("namespace")), None)
        if arm is None or metadata.get("name") != self.terms.policy:
            return
        status = document.get("status") or {}
        for entry in status.get("classes") or ():
            weights = {
                str(each["tier"]): float(each["percent"])
                for each in entry.get("weights") or ()
                if each.get("percent") is not None
            }
            if weights:
                self._weights(WeightSeen(arm.name, str(entry.get("name", "")), at_seconds, weights))
        decision = status.get("decision") or {}
        identity = str(decision.get("id", ""))
        if arm is self.arms[0] and identity and identity not in self._decisions:
            self._decisions.add(identity)
            self.moves.append(Move(at_seconds, str(decision.get("message", ""))))

    def _weights(self, seen: WeightSeen) -> None:
        before = next(
            (each for each in reversed(self.weights) if (each.arm, each.class_name) == (seen.arm, seen.class_name)),
            None,
        )
        if before is None or before.weights != seen.weights:
            self.weights.append(seen)

    def read_answers(self, arm: str, path: Path) -> None:
        """Take in what a client has written since the last call."""
        if not path.exists():
            return
        with path.open("rb") as stream:
            stream.seek(self._offsets.get(arm, 0))
            data = stream.read()
        complete = data.rpartition(b"\n")[0]
        if not complete:
            return
        self._offsets[arm] = self._offsets.get(arm, 0) + len(complete) + 1
        for line in complete.splitlines():
            entry = json.loads(line)
            if entry.get("end"):
                self.ends[arm] = entry
            else:
                self.served.append(served(arm, entry))


def served(arm: str, entry: Mapping[str, Any]) -> Served:
    """A record of the load client, as ours."""
    identity = str(entry.get("response_id") or "")
    for prefix in ANSWER_PREFIXES:
        identity = identity.removeprefix(prefix)
    planned = float(entry["planned_seconds"])
    sent = entry.get("sent_seconds")
    return Served(
        arm=arm,
        request_id=identity,
        class_name=str(entry["kind"]),
        tier=entry.get("tier"),
        scheduled_seconds=planned,
        sent_seconds=planned if sent is None else float(sent),
        status=entry.get("status") or None,
        ttft_seconds=entry.get("ttft_seconds"),
        inter_token_seconds=entry.get("inter_token_seconds"),
        latency_seconds=entry.get("latency_seconds"),
        prompt_tokens=entry.get("prompt_tokens"),
        completion_tokens=entry.get("completion_tokens"),
        attempts=entry.get("attempts"),
        error=entry.get("error") or "",
    )
