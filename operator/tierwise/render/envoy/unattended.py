"""What gateways do by themselves when no operator decides any more: a budget's `failurePolicy`.

A static layer of each gateway's runtime says "nobody decides". While somebody does, every replica lays another one over
it that says the opposite, by RTDS, with a time to live; it is renewed every few seconds. When it is not, Envoy takes it
away by itself, with no operator and no Python left, and routes that ask the runtime match otherwise. A gateway whose
bootstrap has no such layers (an older one) never does.
"""

from collections.abc import Mapping
from typing import Any

from tierwise.core.ceiling import Unattended
from tierwise.render.envoy.fields import ADS

SECONDS = (60, 120, 300, 600, 900, 1800, 3600, 7200, 21_600, 86_400)
"""Times to live that there are layers for."""
_LAYER = "tierwise-decided-"


def layered_runtime() -> dict[str, Any]:
    """Of the bootstrap."""
    patient = {**ADS, "initial_fetch_timeout": "5s"}
    nobody = {key: value for seconds in SECONDS for key, value in ((_closed(seconds), 100), (_denied(seconds), 0))}
    return {
        "layers": [
            {"name": "tierwise", "static_layer": nobody},
            *(
                {"name": layer(seconds), "rtds_layer": {"name": layer(seconds), "rtds_config": patient}}
                for seconds in SECONDS
            ),
        ]
    }


def attended() -> dict[str, Any]:
    """The same with nothing to fetch, as it is while somebody decides."""
    first = layered_runtime()["layers"][0]
    return {"layers": [first, *({"name": layer(each), "static_layer": decided(each)} for each in SECONDS)]}


def layer(seconds: int) -> str:
    """Name of the layer that lives so long."""
    return f"{_LAYER}{seconds}"


def seconds_of(name: str) -> int | None:
    """How long a layer of this name lives; None: it is none of ours."""
    text = name.removeprefix(_LAYER)
    return int(text) if text != name and text.isdecimal() and int(text) in SECONDS else None


def decided(seconds: int) -> dict[str, int]:
    """What a layer says while somebody decides."""
    return {_closed(seconds): 0, _denied(seconds): 100}


def closes(found: Unattended) -> dict[str, Any]:
    """Part of a route's match: nobody has decided for so long, or a little less."""
    seconds = max((each for each in SECONDS if each <= found.seconds), default=SECONDS[0])
    return _fraction(_closed(seconds), 0)


def still_denied(after_seconds: float) -> dict[str, Any]:
    """Part of a route's match: somebody has decided for so long, or a little more."""
    seconds = min((each for each in SECONDS if each >= after_seconds), default=SECONDS[-1])
    return _fraction(_denied(seconds), 100)


def _fraction(key: str, otherwise: int) -> dict[str, Any]:
    value: Mapping[str, Any] = {"numerator": otherwise, "denominator": "HUNDRED"}
    return {"runtime_fraction": {"default_value": value, "runtime_key": key}}


def _closed(seconds: int) -> str:
    return f"tierwise.undecided_{seconds}"


def _denied(seconds: int) -> str:
    return f"tierwise.decided_{seconds}"
