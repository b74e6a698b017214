"""What engines and the provider wrote about the requests they served: read from their logs, after the run."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from tierwise.demo.checks import Upstream
from tierwise.demo.pods import PodKey, PodLife


def parse(lines: Iterable[str], namespace: str, tier: str) -> Iterator[Upstream]:
    """The request lines of one container's log; other lines are passed over."""
    for line in lines:
        if '"event":"request"' not in line:
            continue
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        yield Upstream(
            request_id=str(entry.get("request_id", "")),
            namespace=namespace,
            tier=tier,
            outcome=str(entry.get("outcome", "")),
            prompt_tokens=_number(entry.get("prompt_tokens")),
            completion_tokens=_number(entry.get("completion_tokens")),
        )


def _number(value: object) -> int | None:
    return value if isinstance(value, int) else None


def read(folder: Path, lives: Mapping[PodKey, PodLife], namespaces: Iterable[str]) -> list[Upstream]:
    """All requests in the process node's logs, whose folders are `<namespace>_<pod>_<uid>/<container>/<restart>.log`.

    Args:
        folder: of the logs.
        lives: Pods that were seen, for their tiers. A Pod of no tier is a provider's.
        namespaces: whose Pods to read.
    """
    tiers = {key.uid: key.tier for key in lives}
    wanted = set(namespaces)
    found: list[Upstream] = []
    for path in sorted(folder.glob("*/*/*.log")):
        namespace, _, rest = path.parent.parent.name.partition("_")
        uid = rest.rpartition("_")[2]
        if namespace not in wanted:
            continue
        with path.open(encoding="utf-8", errors="replace") as lines:
            found += parse(lines, namespace, tiers.get(uid, ""))
    return found
