"""What a controller drives: the fluid engine and the event-level one look the same to it."""

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Protocol

from tierwise.simulate.fluid import Demand, FluidClass, FluidTier, Guard, Replicas, Slot


class Engine(Protocol):
    """A simulated fleet, in order of time."""

    @property
    def tiers(self) -> Sequence[FluidTier]:
        """As they truly are."""
        ...

    @property
    def classes(self) -> Sequence[FluidClass]:
        """As they truly are."""
        ...

    @property
    def now(self) -> float:
        """Seconds since the start."""
        ...

    @property
    def state(self) -> MutableMapping[str, Replicas]:
        """Replicas by tier."""
        ...

    @property
    def down(self) -> set[str]:
        """Providers that answer nobody."""
        ...

    @property
    def guard(self) -> Guard:
        """What happens to requests that a tier can not carry at the moment."""
        ...

    @guard.setter
    def guard(self, value: Guard) -> None: ...

    def scale(self, wanted: Mapping[str, int]) -> None:
        """Ask for so many replicas of each tier now."""
        ...

    def step(self, demand: Mapping[str, Demand], weights: Mapping[str, Mapping[str, float]], seconds: float) -> Slot:
        """The next slot, with these weights (class -> tier -> share)."""
        ...
