"""How many requests a replica may have in flight, where gateways send what is above elsewhere."""

from collections.abc import Iterable

from tierwise.core.capacity import PROMPT_WEIGHT, Capacity, work_units

GUARDED = 0.9
"""Share of the safe utilisation at which gateways give a replica no more requests, where a class may be relieved: what
is known of it is known to a few percent, and beyond all of its requests are slow."""


def concurrent_at(
    capacity: Capacity, utilisation: float, mix: Iterable[tuple[float, float, float, bool]]
) -> float | None:
    """Requests in flight of one replica at a utilisation below 1, by Little's law: arrivals times how long each takes.

    Args:
        capacity: what is known of the tier.
        utilisation: of the replica.
        mix: requests/s, prompt and completion tokens of each class, and whether its requests are counted.

    Returns:
        None where the mix is empty or no token was timed yet.
    """
    idle = capacity.idle_inter_token_seconds
    if idle is None or not 0 < utilisation < 1:
        return None
    work, held = 0.0, 0.0
    for rate, prompt, completion, counts in mix:
        work += rate * work_units(prompt, completion)
        held += counts * rate * (PROMPT_WEIGHT * prompt / capacity.saturation + (1 + completion) * idle)
    return utilisation / (1 - utilisation) * capacity.saturation * held / work if work > 0 else None
