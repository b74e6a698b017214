"""Durations, money, quantities, sensitivity, immutable maps: read, compared, written back."""

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from tierwise.api.scalars import (
    Duration,
    Figure,
    FrozenMap,
    LossPercent,
    Money,
    PositiveDecimal,
    Quantity,
    Score,
    Sensitivity,
)

UNITS = {"ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}


@given(st.lists(st.tuples(st.integers(0, 99_999), st.sampled_from(sorted(UNITS))), min_size=1, max_size=4))
def test_a_duration_is_the_sum_of_its_parts(parts):
    read = Duration.parse("".join(f"{number}{unit}" for number, unit in parts))
    assert read.nanoseconds == sum(number * UNITS[unit] for number, unit in parts)
    assert read.seconds == float(Fraction(read.nanoseconds, 10**9))  # rounded once, however long it is


@given(st.integers(1, 10**15))
def test_a_duration_written_and_read_is_the_same(microseconds):
    duration = Duration(microseconds * 1000)
    if microseconds < 99_999 * 3600 * 10**6:
        assert Duration.parse(str(duration)) == duration


@given(st.floats(0.000001, 10**7))
def test_a_duration_from_seconds_keeps_microseconds(seconds):
    assert Duration.from_seconds(seconds).seconds == pytest.approx(seconds, abs=1e-6)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("800ms", 0.8), ("1h30m", 5400), ("2m", 120), ("1.5s", 1.5), ("0.5h", 1800), ("60s", 60)],
)
def test_known_durations(text, seconds):
    assert Duration.parse(text).seconds == seconds


@pytest.mark.parametrize("text", ["", "5", "1 s", "1d", "-1s", "+1s", "1e3s", "s", "1s\n", "100000h", "1.5", ".5s"])
def test_no_durations(text):
    with pytest.raises(ValueError, match="with its unit"):
        Duration.parse(text)


def test_durations_sort_by_length_and_write_shortest():
    assert Duration.parse("90s") == Duration.parse("1m30s")
    assert Duration.parse("900ms") < Duration.parse("1s")
    assert [str(Duration.parse(t)) for t in ("90s", "3600s", "0.8s", "1500ms", "1h0m1s")] == [
        "1m30s",
        "1h",
        "800ms",
        "1.5s",
        "1h1s",
    ]


money = TypeAdapter(Money)


@given(st.decimals(0, 999_999_999_999, allow_nan=False, allow_infinity=False, places=9))
def test_money_written_and_read_is_exact(amount):
    amount = abs(amount)
    text = money.dump_python(amount, mode="json")
    assert isinstance(text, str)
    assert money.validate_python(text) == amount


@given(st.one_of(st.floats(), st.integers(), st.booleans(), st.none(), st.text("0123456789.,eE+-_ $€\n٣", max_size=8)))
def test_money_is_only_ever_a_plain_decimal_string(value):
    try:
        read = money.validate_python(value)
    except ValidationError as error:
        said = str(error)
        read = None
    if read is None:
        assert "quoted decimal number" in said
        return
    assert isinstance(value, str)
    assert value.isascii()
    assert {*value} <= {*"0123456789."}
    assert read == Decimal(value) >= 0


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (
            Money,
            ["0", "2.95", "12000.00", "0.000000001"],
            ["-1", "2,95", "$2", "1e3", "02", ".5", "1.", "NaN", 2.95, 3],
        ),
        (PositiveDecimal, ["0.1", "6.5"], ["0", "0.00", "-1"]),
        (Score, ["0", "0.93", "1", "1.0"], ["1.1", "93", "-0.1", "1.01"]),
        (LossPercent, ["0", "1", "0.5", "100", "100.0"], ["100.5", "101", "-1"]),
    ],
)
def test_decimal_kinds(kind, good, bad):
    adapter = TypeAdapter(kind)
    for text in good:
        assert adapter.validate_python(text) == Decimal(text)
    for value in bad:
        with pytest.raises(ValidationError):
            adapter.validate_python(value)


@given(st.decimals(-(10**12), 10**12, allow_nan=False, allow_infinity=False))
def test_figures_are_rounded_once_and_then_stable(value):
    adapter = TypeAdapter(Figure)
    rounded = adapter.validate_python(value)
    text = adapter.dump_python(rounded, mode="json")
    assert abs(rounded - value) <= Decimal("0.0000005")
    assert "E" not in text
    assert len(text) <= 32
    assert adapter.validate_python(text) == rounded
    assert adapter.dump_python(adapter.validate_python(text), mode="json") == text


@pytest.mark.parametrize("value", [Decimal("NaN"), Decimal("Infinity"), 1.5, "1e3", None])
def test_what_is_no_number_is_no_figure(value):
    with pytest.raises(ValidationError):
        TypeAdapter(Figure).validate_python(value)


@pytest.mark.parametrize(
    ("text", "value"),
    [("1", "1"), (4, "4"), ("500m", "0.5"), ("16Gi", str(16 * 2**30)), ("1e3", "1000"), ("2k", "2000"), ("0.5", "0.5")],
)
def test_quantities(text, value):
    assert Quantity.parse(text).value == Decimal(value)
    assert str(Quantity.parse(text)) == str(text)


def test_equal_quantities_are_equal_however_written():
    assert Quantity.parse("1000m") == Quantity.parse("1")
    assert hash(Quantity.parse("1000m")) == hash(Quantity.parse("1"))


@pytest.mark.parametrize("text", ["", "16 GB", "-1", "1ki", "many", "1Kib", "0x10", "1e"])
def test_no_quantities(text):
    with pytest.raises(ValueError, match="Kubernetes quantity"):
        Quantity.parse(text)


def test_sensitivity_is_ordered_by_rank_not_by_letter():
    levels = [Sensitivity.PUBLIC, Sensitivity.INTERNAL, Sensitivity.CONFIDENTIAL, Sensitivity.RESTRICTED]
    assert sorted([levels[2], levels[0], levels[3], levels[1]]) == levels
    assert max(levels) is Sensitivity.RESTRICTED
    for i, low in enumerate(levels):
        for j, high in enumerate(levels):
            assert (low < high, low <= high, low > high, low >= high) == (i < j, i <= j, i > j, i >= j)


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
    max_leaves=10,
)


@given(st.dictionaries(st.text(max_size=3), json_values, max_size=4))
def test_a_frozen_map_thaws_to_what_was_frozen(plain):
    frozen = FrozenMap(plain)
    assert frozen.thaw() == plain
    assert frozen == FrozenMap(dict(reversed(plain.items())))
    assert hash(frozen) == hash(FrozenMap(dict(reversed(plain.items()))))


def test_a_thawed_map_does_not_reach_the_frozen_one():
    frozen = FrozenMap({"a": {"b": [1]}})
    frozen.thaw()["a"]["b"].append(2)
    assert frozen.thaw() == {"a": {"b": [1]}}
    with pytest.raises(TypeError):
        frozen["c"] = 1
