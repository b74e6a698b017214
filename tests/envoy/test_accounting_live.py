"""What the gateway counts, and what upstreams say themselves: exact where they report usage, never low otherwise."""

import asyncio
import os
import random
import time

import pytest
import pytest_asyncio
from accounting_lab import STORIES, Log, Metered, Truth, counted, make, octets, send, truth, words
from envoy_lab import Lab, consumer, external, in_cluster, policy, world

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
