"""Words and figures of the report."""

import pytest

from tierwise.simulate import page
from tierwise.simulate.page import Decision, Figure, Report


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (None, "\u2013"),
        (1.0, "100.0 %"),
        (1 - 1e-12, "100.0 %"),
        (0.99999, "99.99 %"),
        (0.9997, "99.97 %"),
        (0.98765, "98.8 %"),
    ],
)
def test_all_is_said_of_all_requests_only(share, text):
    assert page.kept(share) == text


@pytest.mark.parametrize(("count", "words"), [(1, "1 move, in"), (2, "2 moves, in")])
def test_moves_are_counted_in_words(count, words):
    moves = [Decision(60.0 * at, "weights of chat", "cheaper") for at in range(count)]
    assert words in page.render(Report("A run", "Simulated.", (Figure("Cost", "1"),), (), moves))
