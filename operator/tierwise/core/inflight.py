"""How many requests a replica may have in flight, where gateways send what is above elsewhere."""

from collections.abc import Iterable

from tierwise.core.capacity import PROMPT_WEIGHT, Capacity, work_units

GUARDED = 0.9
"""Share of the safe utilisation at which gateways give a replica no more requests, where a class may be relieved: what
is known of it is known to a few percent, and beyond all of its requests are slow."""


def concurrent_at(
    capacity: Capacity, utilisation: float, replicas: int, mix: Iterable[tuple[float, float, float, bool]]
) -> float | None:
    """Counted requests in flight of one replica at a utilisation, by Little's law: arrivals times how long each takes.

    Requests that are not counted take their part of the replicas whatever gateways do; the others get the rest.

    Args:
        capacity: what is known of the tier.
        utilisation: of the replica, below 1.
        replicas: that share the load, at least 1.
        mix: requests/s, prompt and completion tokens of each class on the tier, and whether its requests are counted.

    Returns:
        0 where the others leave nothing. None where nothing is counted or no token was timed yet.
    """
    idle = capacity.idle_inter_token_seconds
    if idle is None or not 0 < utilisation < 1:
        return None
    work, held, beside = 0.0, 0.0, 0.0
    for rate, prompt, completion, counts in mix:
        load = rate * work_units(prompt, completion)
        if not counts:
            beside += load
            continue
        work += load
        held += rate * (PROMPT_WEIGHT * prompt / capacity.saturation + (1 + completion) * idle)
    room = max(0.0, utilisation - beside / (capacity.saturation * replicas))
    return room / (1 - utilisation) * capacity.saturation * held / work if work > 0 else None
