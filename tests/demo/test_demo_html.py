"""The run's report: the same page as a simulation's, from what was measured."""

import json
import re
import xml.etree.ElementTree as ET

from demo_worlds import terms
from test_demo_summary import AUTO, LARGE, SEEN, outcome

from tierwise.demo import html, timeline
from tierwise.demo.recorder import Move
from tierwise.simulate import page


def told():
    points = timeline.build(100, (AUTO, LARGE), terms(), SEEN)
    moves = (Move(30.0, "routine: compact 50% -> 60% & <more>"),)
    return page.render(html.report(outcome(), points, SEEN.served, moves, terms()))


def plot(tree, title):
    figure = next(each for each in tree.iter("figure") if title in [b.text for b in each.iter("b")])
    values = next(each for each in figure.iter("div") if each.get("class") == "plot").get("data-values")
    return {each["n"]: each["v"] for each in json.loads(values)["s"]}


def test_the_page_is_well_formed_and_needs_nothing_else():
    text = told()
    assert not re.search(r"https?:|@import|url\(|src=", text)
    tree = ET.fromstring(text.partition("\n")[2])  # noqa: S314 - our own
    assert "routine: compact 50% -> 60% & <more>" in [cell.text for cell in tree.iter("td")]
    assert any("simulators" in (each.text or "") for each in tree.iter("p"))


def test_its_plots_show_what_the_timeline_holds():
    tree = ET.fromstring(told().partition("\n")[2])  # noqa: S314 - our own
    weights = plot(tree, "Weights of routine")
    assert (weights["compact"][10], weights["compact"][50]) == ("50", "60")
    assert (weights["provider"][10], weights["provider"][50]) == ("50", "40")
    replicas = plot(tree, "Replicas")
    assert replicas["compact"][10] == "1"
    assert replicas["compact"][50] == "2"
    assert replicas["all-large"][50] == "2"
    cost = plot(tree, "Cost")
    assert set(cost) == {"auto", "all-large"}
    assert cost["all-large"][50] == "14.4"
    within = plot(tree, "Within objective, both set-ups")
    assert within["all-large"][90] == "100"
    assert within["all-large"][100] != "100"


def test_figures_are_those_of_the_outcome():
    tree = ET.fromstring(told().partition("\n")[2])  # noqa: S314 - our own
    figures = {each.find("dt").text: each.find("dd").text for each in tree.iter("div") if each.find("dt") is not None}
    arms = outcome().arms
    assert figures["Cost, auto"] == f"{arms['auto'].bill.cost_per_hour:,.2f}"
    assert figures["Within objective, all-large"] == f"{100 * arms['all-large'].attainment:.1f} %"
