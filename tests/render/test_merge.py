import copy
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tierwise.render import merge

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text("ab", max_size=2),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("xyz", max_size=2), inner, max_size=3),
    max_leaves=8,
)
json_maps = st.dictionaries(st.sampled_from(["spec", "env", "volumes", "x"]), json_values, max_size=3)


@given(json_maps, json_maps)
def test_an_overlay_is_idempotent_and_changes_neither_side(base: dict[str, Any], patch: dict[str, Any]) -> None:
    before = copy.deepcopy((base, patch))
    once = merge.overlay(base, patch)
    assert (base, patch) == before
    assert merge.overlay(base, {}) == base
    if "env" not in patch and "volumes" not in patch:  # items without their key are appended, as kubectl refuses them
        assert merge.overlay(once, patch) == once


@given(json_maps)
def test_no_null_of_an_overlay_stays(patch: dict[str, Any]) -> None:
    def nulls(value: Any) -> bool:
        return isinstance(value, dict) and any(v is None or nulls(v) for v in value.values())

    assert not nulls(merge.overlay({"x": {"y": 1}}, patch))


def test_lists_with_a_key_merge_by_it_and_keep_their_order() -> None:
    base = {"env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]}
    patch = {"env": [{"name": "C", "value": "3"}, {"name": "A", "value": "9"}]}
    assert merge.overlay(base, patch)["env"] == [
        {"name": "A", "value": "9"},
        {"name": "B", "value": "2"},
        {"name": "C", "value": "3"},
    ]


def test_a_directive_removes_an_item_and_never_appears() -> None:
    gone = {"name": "A", "$patch": "delete"}
    assert merge.overlay({"volumes": [{"name": "A"}, {"name": "B"}]}, {"volumes": [gone]}) == {
        "volumes": [{"name": "B"}]
    }
    assert merge.overlay({}, {"volumes": [gone]}) == {"volumes": []}


def test_other_lists_are_replaced() -> None:
    assert merge.overlay({"args": [1, 2]}, {"args": [3]}) == {"args": [3]}
    assert merge.overlay({"tolerations": [{"key": "a"}]}, {"tolerations": [{"key": "b"}]}) == {
        "tolerations": [{"key": "b"}]
    }


def test_null_removes() -> None:
    assert merge.overlay({"a": {"b": 1, "c": 2}}, {"a": {"b": None}}) == {"a": {"c": 2}}
