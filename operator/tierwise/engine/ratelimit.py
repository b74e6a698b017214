"""A provider's limit of requests per minute. No I/O, no clock."""

WINDOW_SECONDS = 10.0
"""The limit is a bucket that holds this many seconds of its rate."""


class RateLimit:
    """Counts requests against `rpm`, requests per minute; None: no limit. Begins full."""

    def __init__(self, rpm: float | None, now: float) -> None:
        self._rate = None if rpm is None else rpm / 60
        self._size = max(1.0, (self._rate or 0.0) * WINDOW_SECONDS)
        self._left = self._size
        self._at = now

    def wait_seconds(self, now: float) -> float:
        """Seconds until a request is allowed; 0 takes one now. `now`: seconds of any clock that never goes back."""
        if self._rate is None:
            return 0.0
        self._left = min(self._size, self._left + (now - self._at) * self._rate)
        self._at = now
        if self._left < 1.0:
            return (1.0 - self._left) / self._rate
        self._left -= 1.0
        return 0.0
