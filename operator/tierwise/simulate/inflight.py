"""Requests in flight of a tier at event level, as gateways count them to know when it is saturated.

All streams of a tier advance at the same speed, so a request ends when the tier's streams have had so many tokens since
it began. How fast they are in the next seconds is told from the last ones, and put right when these are over.
"""

import heapq
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tierwise.simulate.tierload import SLOT_SECONDS, Floats

Bools = NDArray[np.bool_]


@dataclass(slots=True)
class InFlight:
    """The requests of one tier that are counted.

    Attributes:
        gap: seconds between two tokens of a stream, as last seen.
        tokens: that a stream has had since the start. ends: at which the requests end, a heap.
    """

    gap: float
    tokens: float = 0.0
    ends: list[float] = field(default_factory=list)

    def admit(self, since: Floats, lengths: Floats, most: Floats) -> Bools:
        """Which requests the tier takes; the others come while it has as many as it may have.

        Args:
            since: when each comes, seconds since the last `advance`, in order.
            lengths: how long each takes, in tokens of a stream.
            most: requests that may be in flight when it comes.
        """
        taken = np.ones(since.size, dtype=np.bool_)
        moments = self.tokens + since / self.gap
        ends = self.ends
        for place, (at, length, limit) in enumerate(
            zip(moments.tolist(), lengths.tolist(), most.tolist(), strict=True)
        ):
            while ends and ends[0] <= at:
                heapq.heappop(ends)
            if len(ends) >= limit:
                taken[place] = False
            else:
                heapq.heappush(ends, at + length)
        return taken

    def advance(self, gaps: Floats) -> None:
        """Time passes: a slot of `SLOT_SECONDS` for each time between tokens, seconds; 0 where none was generated."""
        seen = gaps[gaps > 0]
        if seen.size:
            self.gap = float(seen[-1])
        self.tokens += float((SLOT_SECONDS / np.where(gaps > 0, gaps, self.gap)).sum())
