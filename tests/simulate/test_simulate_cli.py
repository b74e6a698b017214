"""`tierwise simulate` on small manifests and traces: figures, files, messages."""

import json
import re
import xml.etree.ElementTree as ET

import pytest
import yaml
from bench_simulate import MANIFESTS
from click.testing import CliRunner

from tierwise.cli import cli
from tierwise.errors import TierwiseError

PROVIDER = """
---
apiVersion: tierwise.dev/v1alpha1
kind: ModelTier
metadata: {name: far}
spec:
  model: far
  clearance: Internal
  external:
    url: https://far.example/v1
    price: {inputPerMillionTokens: "3.00", outputPerMillionTokens: "15.00"}
  quality: [{task: chat, score: "0.90"}, {task: code, score: "0.80"}]
---
apiVersion: tierwise.dev/v1alpha1
kind: NamespaceBudget
metadata: {name: day}
spec:
  ceiling: "1.00"
  period: Day
  ladder: [{atPercent: 100, action: Notify}]
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "objects.yaml").write_text(MANIFESTS)
    lines = [f"{k / 4:g},{400 + k % 7 * 50},{80 + k % 5 * 20},{'code' if k % 4 == 0 else 'chat'}" for k in range(4800)]
    (tmp_path / "both.csv").write_text("\n".join(["t_s,prompt_tokens,output_tokens,class", *lines]) + "\n")
    minutes = [f"{k},{200 + 10 * (k % 3)},{90000},{20000},60" for k in range(40)]
    header = "minute,requests,prompt_tokens,output_tokens,max_requests_in_10s"
    (tmp_path / "minutes.csv").write_text("\n".join([header, *minutes]) + "\n")
    return tmp_path


def run(*args):
    return CliRunner().invoke(cli, ["simulate", *map(str, args)], catch_exceptions=False)


def found(*args):
    done = run(*args, "-o", "json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_the_document_holds_every_figure_and_says_what_it_is(folder):
    told = found("-f", folder / "objects.yaml", "--trace", folder / "both.csv", "--optimum")
    assert told["provenance"] == "simulated"
    assert "closed form, second by second" in told["model"]
    assert told["requests"] == {"total": 4800, "classes": {"code": 1200, "chat": 3600}}
    tiers = sum(float(value) for value in told["cost"]["tiers"].values())
    assert float(told["cost"]["total"]) == pytest.approx(tiers, abs=1e-3)
    assert float(told["cost"]["perHour"]) == pytest.approx(3 * tiers, rel=1e-3)
    assert set(told["allLarge"]) >= {"reference", "fixedForPeak", "autoscaled"}
    hourly = float(told["allLarge"]["fixedForPeak"]["perHour"])
    factor = told["savingFactor"]["fixedForPeak"]
    assert factor == pytest.approx(hourly / float(told["cost"]["perHour"]), abs=1e-3)
    assert 0.9 < told["attainment"]["overall"] <= 1.0
    assert set(told["attainment"]["classes"]) == {"code", "chat"}
    quality = told["quality"]["classes"]["chat"]
    mixed = sum(share * {"small": 0.8, "large": 0.9}[tier] for tier, share in quality["shares"].items())
    assert quality["expected"] == pytest.approx(mixed, abs=2e-4)
    assert quality["floor"] == 0.83
    assert quality["lossPoints"] == pytest.approx(100 * (0.9 - quality["expected"]), abs=0.02)
    assert quality["lossPercent"] == pytest.approx(100 * (1 - quality["expected"] / 0.9), abs=0.02)
    losses = {name: each["lossPercent"] for name, each in told["quality"]["classes"].items()}
    assert told["quality"]["lossPercent"] == pytest.approx((3 * losses["chat"] + losses["code"]) / 4, abs=2e-3)
    assert told["quality"]["worstLossPercent"] == max(losses.values())
    assert {"weightsPerHour", "replicasPerHour", "reversalsPerDay"} <= set(told["changes"])
    assert set(told["convergence"]) >= {"steps", "longestSeconds"}
    assert told["optimum"]["costOverReplay"] > 0
    assert told["inputs"]["engines"]["small"].startswith("qwen3-8b/")


def test_equal_seeds_give_equal_documents_and_another_seed_does_not(folder):
    args = ("-f", folder / "objects.yaml", "--trace", folder / "both.csv", "--hours", "0.2")
    first = found(*args)
    assert found(*args) == first
    assert found(*args, "--seed", "5")["quality"] != first["quality"]


def test_a_file_per_minute_is_a_fluid_and_can_be_drawn_as_requests(folder):
    args = ("-f", folder / "objects.yaml", "--trace", f"code={folder / 'minutes.csv'}",
            "--trace", f"assistant/chat={folder / 'minutes.csv'}")  # fmt: skip
    fluid, drawn = found(*args), found(*args, "--speed", "fast", "--round", "60")
    assert "as a fluid" in fluid["model"]
    assert "second by second" in drawn["model"]
    assert fluid["requests"] == drawn["requests"]
    assert float(drawn["cost"]["total"]) == pytest.approx(float(fluid["cost"]["total"]), rel=0.02)
    assert drawn["attainment"]["overall"] == pytest.approx(fluid["attainment"]["overall"], abs=0.02)


def test_iteration_level_and_closed_form_agree_where_prefills_are_short(folder):
    args = ("-f", folder / "objects.yaml", "--trace", folder / "both.csv", "--hours", "0.1")
    exact, fast = found(*args, "--speed", "exact"), found(*args, "--speed", "fast")
    assert float(exact["cost"]["total"]) == pytest.approx(float(fast["cost"]["total"]), rel=0.05)
    assert exact["attainment"]["overall"] == pytest.approx(fast["attainment"]["overall"], abs=0.03)


def test_scale_multiplies_requests(folder):
    told = found("-f", folder / "objects.yaml", "--trace", folder / "both.csv", "--hours", "0.1", "--scale", "chat=3")
    assert told["requests"]["classes"]["chat"] == pytest.approx(3 * told["requests"]["classes"]["code"] * 3, rel=0.01)


def test_all_large_per_token_where_the_reference_is_a_provider_and_overspend_of_a_budget(folder):
    text = MANIFESTS.replace("referenceTier: large", "referenceTier: far")
    text = text.replace("{name: large}]", "{name: large}, {name: far}]") + PROVIDER
    (folder / "objects.yaml").write_text(text)
    told = found("-f", folder / "objects.yaml", "--trace", folder / "both.csv", "--hours", "0.3")
    assert set(told["allLarge"]) == {"reference", "perToken"}
    assert told["savingFactor"]["perToken"] > 0
    (budget,) = told["budgets"]
    spent = float(budget["spentInTheDearestPeriod"])
    assert spent == pytest.approx(float(told["cost"]["total"]), abs=1e-3)
    assert budget["overspendPercent"] == pytest.approx(max(0.0, 100 * (spent - 1.0)), abs=0.1)


def test_a_budgets_ladder_is_carried_out_and_what_it_denies_is_told(folder):
    rungs = "[{atPercent: 50, action: Downgrade}, {atPercent: 70, action: Throttle}, {atPercent: 90, action: Deny}]"
    budget = re.sub("ladder: .*", f"ladder: {rungs}", PROVIDER.split("---\n")[2])

    def under(ceiling):
        text = budget.replace('ceiling: "1.00"', f'ceiling: "{ceiling}"')
        (folder / "objects.yaml").write_text(f"{MANIFESTS}---\n{text}")
        return found("-f", folder / "objects.yaml", "--trace", folder / "both.csv")

    (entry,) = under("1000")["budgets"]
    assert entry["ladder"] == {"carriedOut": True, "shareOfTime": {"Notify": 1.0}}
    told = under("2")
    assert told["deniedRequests"]
    assert sum(told["deniedRequests"].values()) + told["requests"]["total"] == pytest.approx(4800, abs=20)
    assert any(each["what"] == "budget day" for each in told["decisions"])


def test_the_report_needs_nothing_else_and_is_well_formed(folder):
    path = folder / "report.html"
    done = run("-f", folder / "objects.yaml", "--trace", folder / "both.csv", "--html", path, "--no-warm-up")
    assert done.exit_code == 0
    assert "as simulated" in done.stdout
    text = path.read_text()
    assert not re.search(r"https?:|//[a-z]+\.|@import|url\(|src=", text.replace("<![CDATA[", ""))
    page = ET.fromstring(text.partition("\n")[2])  # noqa: S314 - our own
    titles = [each.text for each in page.iter("b") if each.text]
    for wanted in ("Demand", "Replicas", "Weights of code", "Weights of chat", "Cost", "Within objective"):
        assert wanted in titles
    plots = [each for each in page.iter("div") if each.get("class") == "plot"]
    assert len(plots) == 6
    for plot in plots:
        values = json.loads(plot.get("data-values"))
        assert {len(each["v"]) for each in values["s"]} == {len(values["x"])}
        assert plot.get("aria-label")
        assert all(path.get("d", "M").startswith("M") for path in plot.iter("path"))
    assert "prefers-color-scheme:dark" in text
    assert any("requests/s" in "".join(cell.itertext()) for cell in page.iter("td"))  # a decision's own words


def test_yaml_is_the_same_document(folder):
    args = ("-f", folder / "objects.yaml", "--trace", folder / "both.csv", "--hours", "0.1")
    assert yaml.safe_load(run(*args, "-o", "yaml").stdout) == found(*args)


@pytest.mark.parametrize(
    ("change", "args", "words"),
    [
        (
            ("modelSource: Qwen/Qwen3-8B", "modelSource: acme/none"),
            [],
            "tier small: nothing says how fast 'acme/none' is",
        ),
        (('price: {perReplicaHour: "2.95"}', ""), [], "tier small: spec.inCluster.price is missing"),
        (("", ""), ["--scale", "chat=x"], "'x' is no number; write CLASS=NUMBER"),
        (("", ""), ["--scale", "poems=2"], "'poems' is no class of the policies; there are code, chat"),
        (("", ""), ["--hours", "7-9"], "nothing is left to simulate: the shortest trace lasts 0.33 hours"),
        (("", ""), ["--trace", "chat=nowhere.csv"], "there is no file nowhere.csv"),
        (("", ""), ["--output-factor", "tiny=2"], "'tiny' is no tier; there are large, small"),
    ],
)
def test_what_can_not_be_simulated_is_said_with_the_remedy(folder, change, args, words):
    (folder / "objects.yaml").write_text(MANIFESTS.replace(*change, 1) if change[0] else MANIFESTS)
    with pytest.raises(TierwiseError, match=re.escape(words)):
        run("-f", folder / "objects.yaml", "--trace", folder / "both.csv", *args)


def test_invalid_manifests_are_listed_with_file_and_line(folder):
    (folder / "objects.yaml").write_text(MANIFESTS.replace("min: 1, max: 20", "min: 1, max: many"))
    done = run("-f", folder / "objects.yaml", "--trace", folder / "both.csv")
    assert done.exit_code == 1
    assert "objects.yaml:" in done.stderr
    assert "spec.inCluster.replicas.max" in done.stderr


def test_wrong_usage_ends_with_2(folder):
    done = run("-f", folder / "objects.yaml", "--trace", folder / "both.csv", "--hours", "later")
    assert done.exit_code == 2
    assert "write the last hour" in done.stderr


def test_a_profile_in_yaml_and_a_fit_in_csv_replace_the_table(folder):
    profile = folder / "engines.yaml"
    profile.write_text("small: {a: 20, b: 0.1, g: 0.05, p0: 5, p1: 40, p2: 1, kvTokens: 200000, startupSeconds: 60}\n")
    args = ("-f", folder / "objects.yaml", "--trace", folder / "both.csv", "--hours", "0.1")
    told = found(*args, "--profile", profile)
    assert told["inputs"]["engines"]["small"] == "engines.yaml, entry small"
    assert told["inputs"]["startupSeconds"] == {"large": 180.0, "small": 60.0}
    fit = folder / "fit.csv"
    fit.write_text(
        "model,system,tp,itl_alpha_ms,itl_beta_ms_per_seq,itl_gamma_ms_per_1k_kv_tokens,prefill_p0_ms,"
        "prefill_p1_ms_per_1k_tok,prefill_p2_ms_per_1M_tok2\nQwen/Qwen3-8B,h100_sxm,1,6.5,0.01,0.05,3.8,19.6,0.6\n"
    )
    told = found(*args, "--profile", fit)
    assert told["inputs"]["engines"]["small"] == "fit.csv, Qwen/Qwen3-8B on 1 x h100_sxm, times x 1.35"
    assert told["inputs"]["engines"]["large"].startswith("qwen3-32b/")


def test_how_far_fluid_and_event_level_agree_is_printed(folder):
    trace = folder / "minutes.csv"
    done = run("-f", folder / "objects.yaml", "--trace", f"code={trace}", "--trace", f"chat={trace}", "--agreement")
    assert done.exit_code == 0
    same = done.stdout.partition("each under the planner")[0]
    (cost,) = re.findall(r"cost\s+[\d.,]+\s+[\d.,]+\s+([+-][\d.]+) %", same)
    (points,) = re.findall(r"all within objective\s+([+-][\d.]+) points", same)
    assert abs(float(cost)) <= 2.0
    assert abs(float(points)) <= 2.0
