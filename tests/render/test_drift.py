import copy
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiers import tier

from tierwise.core.plan import ReplicaBounds
from tierwise.render.children import children
from tierwise.render.drift import differs

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text("ab", max_size=2),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("xyz", max_size=2), inner, max_size=3),
    max_leaves=8,
)


def observed(child: dict[str, Any]) -> dict[str, Any]:
    """What an API server would show: defaults added, quantities rewritten, a sidecar injected."""
    shown = copy.deepcopy(child)
    shown["status"] = {"replicas": 1}
    if child["kind"] == "Deployment":
        spec = shown["spec"]["template"]["spec"]
        spec["dnsPolicy"] = "ClusterFirst"
        spec["containers"][0]["resources"]["limits"]["memory"] = "25769803776"
        spec["containers"].append({"name": "injected"})
    return shown


def test_defaults_and_rewritten_quantities_are_no_drift() -> None:
    for child in children(tier(), ReplicaBounds(1, 2)):
        assert not differs(child, observed(child))


def test_every_changed_and_every_missing_leaf_is_drift() -> None:
    for child in children(tier(), ReplicaBounds(1, 2)):
        for path, value in leaves(child):
            changed = copy.deepcopy(child)
            replace(changed, path)
            assert differs(child, changed), path
            if value not in ("", None, [], {}):
                gone = copy.deepcopy(child)
                replace(gone, path, None)
                assert differs(child, gone), path


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[tuple[Any, ...], Any]]:
    if isinstance(value, dict) and value:
        return [leaf for key, item in value.items() for leaf in leaves(item, (*path, key))]
    if isinstance(value, list):
        return [leaf for at, item in enumerate(value) for leaf in leaves(item, (*path, at))]
    return [(path, value)]


def replace(root: Any, path: tuple[Any, ...], value: Any = "changed-by-somebody") -> None:
    for step in path[:-1]:
        root = root[step]
    root[path[-1]] = value


@given(json_values)
def test_nothing_differs_from_itself(value: Any) -> None:
    assert not differs(value, copy.deepcopy(value))


@given(st.dictionaries(st.sampled_from("abc"), json_values), st.dictionaries(st.sampled_from("xyz"), json_values))
def test_what_others_added_is_no_drift(wanted: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert not differs(wanted, {**theirs, **wanted})


@given(st.integers(0, 10_000))
def test_quantities_are_compared_by_value(millis: int) -> None:
    def limits(value: Any) -> dict[str, Any]:
        return {"resources": {"limits": {"cpu": value}}}

    spellings = [f"{millis}m", format(Decimal(millis) / 1000, "f")]
    if millis % 1000 == 0:
        spellings += [str(millis // 1000), millis // 1000]
    for one in spellings:
        for other in spellings:
            assert not differs(limits(one), limits(other))
        assert differs(limits(one), limits(f"{millis + 1}m"))


@pytest.mark.parametrize(
    ("wanted", "shown"), [("1Gi", "1024Mi"), ("1e3", "1k"), ("0.5", "500m"), (1, "1"), ("1536Mi", "1.5Gi")]
)
def test_quantities_as_people_write_them(wanted: Any, shown: Any) -> None:
    assert not differs({"requests": {"memory": wanted}}, {"requests": {"memory": shown}})


def test_text_that_looks_like_a_quantity_is_text_elsewhere() -> None:
    assert differs({"env": [{"name": "A", "value": "1000m"}]}, {"env": [{"name": "A", "value": "1"}]})
    assert differs({"annotations": {"a": "1"}}, {"annotations": {"a": 1}})


def test_keyed_lists_ignore_order_and_strangers_but_not_losses() -> None:
    a, b, c = ({"name": name, "value": name} for name in "abc")
    assert not differs({"env": [a, b]}, {"env": [c, b, a]})
    assert differs({"env": [a, b]}, {"env": [a, c]})


def test_two_protocols_on_one_port_are_two_ports() -> None:
    tcp, udp = {"containerPort": 53, "name": "t"}, {"containerPort": 53, "name": "u", "protocol": "UDP"}
    shown = [{**tcp, "protocol": "TCP"}, udp]
    assert not differs({"ports": [tcp, udp]}, {"ports": shown})
    assert differs({"ports": [tcp, {**udp, "name": "other"}]}, {"ports": shown})
