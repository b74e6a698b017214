"""What the gateway counts, and what upstreams say themselves: exact where they report usage, never low otherwise."""

import asyncio
import os
import random
import time
from datetime import timedelta
from decimal import Decimal

import pytest
import pytest_asyncio
from accounting_lab import LABEL, STORIES, Log, Metered, Truth, counted, make, octets, send, truth, words
from envoy_lab import Lab, consumer, external, in_cluster, policy, world

from tierwise.adapters import answers
from tierwise.core import book, ledger, usage
from tierwise.core.ledger import Account, TokenPrices, Use
from tierwise.core.signals import Origin
from tierwise.render.envoy.options import Authentication

pytestmark = pytest.mark.asyncio(loop_scope="module")

REQUESTS = int(os.environ.get("TIERWISE_ACCOUNTING_REQUESTS", "600"))
AT_ONCE = 40
WHEN = ["ConnectFailure", "ServerError", "RateLimited", "LowConfidence"]
POLICIES = ("assistant", "batch")
CONSUMERS = ("app", "tool")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lab(tmp_path_factory):
    started = Lab(tmp_path_factory.mktemp("accounting"), authentication=Authentication())
    try:
        yield await started.start()
    finally:
        await started.stop()


def key(namespace, name):
    return f"tw-{namespace}-{name}-" + 3 * "0123456789"


@pytest_asyncio.fixture(loop_scope="module")
async def metered(lab):
    """Two namespaces with two tiers each.

    In `legal` the second is a provider's, and upstreams count words; in `sales` both are, and every byte is a token.
    """
    log = Log()
    upstreams = {}
    for namespace, tokenize in (("legal", words), ("sales", octets)):
        for tier in ("compact", "large"):
            upstreams[f"{namespace}/{tier}"] = await Metered(f"{namespace}/{tier}", tokenize, log).start()
    tiers, policies, people, secrets = [], [], [], {}
    for namespace in ("legal", "sales"):
        for name in ("compact", "large"):
            url = f"http://127.0.0.1:{upstreams[f'{namespace}/{name}'].port}/v1"
            provider = external(url, name=name, namespace=namespace, allowPlaintext=True)
            tiers.append(in_cluster() if (namespace, name) == ("legal", "compact") else provider)
        policies += [policy(name, namespace, models=[name], classes=classes()) for name in POLICIES]
        for name in CONSUMERS:
            people.append(consumer(name, namespace))
            secrets[f"{namespace}/{name}-key"] = {"token": key(namespace, name)}
    await lab.settle(world(tiers, policies, {"legal/compact": [upstreams["legal/compact"].port]}, secrets, people))
    yield log
    for each in upstreams.values():
        await each.stop()


def classes():
    return [
        {
            "name": name,
            "match": {"headers": [{"name": "x-class", "value": name}]},
            "tiers": [{"name": "compact", "weight": 100}, {"name": "large", "weight": 0}],
            "fallback": {"when": WHEN + more, "attempts": 2, "timeout": "5s"},
        }
        for name, more in (("patient", ["Timeout"]), ("plain", []), ("other", []))
    ]


async def play(lab, requests, log, dice):
    """Send all, some at a time."""
    todo = iter(requests)
    statuses = {}

    async def worker(own):
        for request in todo:
            secret = key(request.namespace, request.consumer)
            statuses[request.id] = await send(lab.http, lab.options.port, request, secret, log, own)

    await asyncio.gather(*(worker(random.Random(dice.random())) for _ in range(AT_ONCE)))
    return statuses


async def test_an_independent_count_agrees(lab, metered):
    dice = random.Random(20261126)
    requests = {r.id: r for r in (make(n, dice, ["legal", "sales"], POLICIES, CONSUMERS) for n in range(REQUESTS))}
    assert {r.story for r in requests.values()} == set(STORIES)
    began = time.monotonic()
    statuses = await play(lab, requests.values(), metered, dice)
    seconds = time.monotonic() - began

    async def all_ended():
        series = await counted(lab)
        return sum(n for of in series.values() for (name, _), n in of.items() if name == "requests") == len(requests)

    await lab.eventually(all_ended, seconds=10)
    await asyncio.sleep(0.5)  # upstreams notice that clients have gone
    for request in requests.values():
        expected = {"error": 400, "left before": 0}.get(request.story, 200)
        if request.story == "broken" and "stream" not in request.body:
            expected = 503
        assert statuses[request.id] == expected, request
    true, seen = truth(requests, metered), await counted(lab)
    print(report(true, seen, len(requests), len(metered), seconds))
    wrong = []
    for each in {*true, *((*who, reason) for who, of in seen.items() for _, reason in of)}:
        *who, reason = each
        of, real = seen[tuple(who)], true.get(each, Truth())
        if not reason:
            exact = {
                "usage_requests": real.attempts,
                "prompt_tokens": real.prompt,
                "completion_tokens": real.completion,
                "cached_prompt_tokens": real.cached,
            }
        else:
            exact = {"estimated_attempts": real.attempts, "unbounded_attempts": real.unbounded}
            for name, tokens in (("prompt", real.prompt), ("completion", real.completion)):
                if of[f"estimated_{name}_tokens", reason] < tokens:
                    wrong.append((each, f"{name}: at most {of[f'estimated_{name}_tokens', reason]}, really {tokens}"))
        wrong += [(each, name, of[name, reason], n) for name, n in exact.items() if of[name, reason] != n]
    assert not wrong
    assert "non-number" not in lab.log()
    assert "script log" not in lab.log()


async def scraped(lab):
    """One scrape of the gateway, as Prometheus keeps it."""
    async with lab.http.get(f"http://127.0.0.1:{lab.metrics_port}/stats/prometheus") as response:
        text = await response.text()
    now = time.time()
    rows = []
    for line in text.splitlines():
        name, _, rest = line.partition("{")
        if name.startswith(("envoy_tierwise_", "envoy_server_uptime")) and "_bucket" not in name:
            labels, _, value = rest.rpartition("} ")
            metric = {"__name__": name, "instance": "gateway-0", **dict(LABEL.findall(labels))}
            rows.append({"metric": metric, "values": [[now, value]]})
    return answers.parse_usage(rows)


async def test_the_ledger_charges_each_caller_what_upstreams_wrote_down(lab, metered):
    """From the gateway's own scrape to lines of the ledger: exact where usage was reported, never low otherwise."""
    dice = random.Random(20261127)
    namespaces, count = ["legal", "sales"], 150
    requests = {r.id: r for r in (make(n, dice, namespaces, POLICIES, CONSUMERS) for n in range(count))}
    targets = [(namespace, tier) for namespace in namespaces for tier in ("compact", "large")]
    before = await scraped(lab)
    _, cursor = usage.read(
        before.series, usage.Cursor(), tiers=targets, instances=before.instances, uptimes=before.uptimes
    )
    ended = sum(of["requests", ""] for of in (await counted(lab)).values())
    await play(lab, requests.values(), metered, dice)

    async def all_ended():
        return sum(of["requests", ""] for of in (await counted(lab)).values()) == ended + count

    await lab.eventually(all_ended, seconds=10)
    await asyncio.sleep(0.5)
    after = await scraped(lab)
    readings, cursor = usage.read(after.series, cursor, tiers=targets, instances=after.instances, uptimes=after.uptimes)
    prices = TokenPrices(Decimal("0.25"), Decimal("0.025"), Decimal(2))
    true, wrong, charged = truth(requests, metered), [], Decimal(0)
    for namespace in namespaces:
        start = min(reading.since for reading in readings.values()) - timedelta(seconds=1)
        account = Account(start, start + timedelta(days=1), start)
        uses = [
            Use(tier, external=True, token_prices=prices, reading=readings[namespace, tier])
            if (namespace, tier) != ("legal", "compact")
            else Use(tier, 1, 1, Decimal(36), reading=readings[namespace, tier])
            for tier in ("compact", "large")
        ]
        end = max(reading.until for reading in readings.values())
        account = ledger.accrue(account, uses, end, max_gap_seconds=600)
        found = book.lines_of(book.settled(account.book))
        assert book.total(account.book).cost == ledger.spend(account).total
        charged += ledger.spend(account).total
        for policy_name, kind, consumer_name in {(r.policy, r.kind, r.consumer) for r in requests.values()}:
            for tier in ("compact", "large"):
                line = found.get((tier, Origin(policy_name, kind, consumer_name)), book.Line())
                who = (namespace, policy_name, kind, tier, consumer_name)
                real = true.get((*who, ""), Truth())
                tokens = (real.prompt - real.cached, real.cached, real.completion)
                if (line.input_tokens, line.cached_input_tokens, line.output_tokens) != tokens:
                    wrong.append((who, line, tokens))
                if (namespace, tier) == ("legal", "compact"):
                    assert line.input_cost == line.output_cost == 0, "paid by the replica"
                    continue
                cost = sum(n * price for n, price in zip(tokens, vars_of(prices), strict=True)) / 1_000_000
                lost = [true.get((*who, reason), Truth()) for reason in ("unreported", "aborted", "discarded")]
                most = sum(each.prompt * prices.input + each.completion * prices.output for each in lost) / 1_000_000
                if line.measured != cost or line.estimated < most:
                    wrong.append((who, line.measured, cost, line.estimated, most))
    assert not wrong
    assert charged > 0
    again = await scraped(lab)
    nothing, _ = usage.read(again.series, cursor, tiers=targets, instances=again.instances, uptimes=again.uptimes)
    assert all(reading.requests == 0 for reading in nothing.values()), "what was counted is counted once"


def vars_of(prices):
    return (prices.input, prices.cached_input, prices.output)


def report(true, seen, requests, attempts, seconds):
    """A table: by reason, what upstreams say and what the gateway counted."""
    columns = f"{'counted':>12}{'ratio':>7}"
    lines = [
        f"\n{requests} requests, {attempts} attempts that reached an upstream, {seconds:.0f} s",
        f"{'':12}{'attempts':>10}{'unbounded':>10}{'prompt':>12}{columns}{'completion':>12}{columns}",
    ]
    for reason in ("", "unreported", "aborted", "discarded"):
        real = [sums for (*_, why), sums in true.items() if why == reason]
        row = [sum(each.attempts for each in real), sum(each.unbounded for each in real)]
        text = f"{reason or 'reported':12}{row[0]:>10}{row[1]:>10}"
        for name in ("prompt", "completion"):
            quantity = f"estimated_{name}_tokens" if reason else f"{name}_tokens"
            tokens = sum(getattr(each, name) for each in real)
            got = sum(of[quantity, reason] for of in seen.values())
            text += f"{tokens:>12}{got:>12}{got / max(tokens, 1):>7.2f}"
        lines.append(text)
    return "\n".join(lines)
