"""What wakes a loop: a change, gathered for a moment, or the clock."""

import asyncio
import contextlib

_LONGEST_SECONDS = 86_400.0
"""A clock may be set: what is due in a month is looked at daily."""


class Trigger:
    """Many pokes, one wake-up. Use from one event loop only.

    Args:
        debounce_seconds: after the first poke, this much longer is waited for others.
    """

    def __init__(self, debounce_seconds: float = 0.02) -> None:
        self._debounce_seconds = debounce_seconds
        self._event = asyncio.Event()
        self._due: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    def poke(self) -> None:
        """Something changed."""
        self._event.set()

    def poke_later(self, seconds: float) -> None:
        """Wake up in so many seconds at the latest."""
        due = asyncio.get_running_loop().time() + max(0.0, seconds)
        self._due = due if self._due is None else min(self._due, due)

    def poke_at(self, seconds: float) -> None:
        """Poke in so many seconds, unless another moment is set before then."""
        loop = asyncio.get_running_loop()
        if self._timer is not None:
            self._timer.cancel()
        self._timer = loop.call_later(min(seconds, _LONGEST_SECONDS), self.poke)

    async def wait(self, timeout_seconds: float) -> bool:
        """Wait for a poke, gathered, or the time-out; whether there was a poke."""
        loop = asyncio.get_running_loop()
        if self._due is not None:
            timeout_seconds = min(timeout_seconds, max(0.0, self._due - loop.time()))
            self._due = None
        poked = False
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                await self._event.wait()
                poked = True
        if poked:
            await asyncio.sleep(self._debounce_seconds)
        self._event.clear()
        return poked
