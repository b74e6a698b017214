"""Sessions and equal prompts stay where they are, at a tier and at a replica, while weights move."""

import json

import pytest
from envoy_lab import external, in_cluster, policy, world

pytestmark = pytest.mark.asyncio(loop_scope="module")

SESSIONS = 1000
NAMES = ("compact", "large", "frontier")


def three_tiers(weights, near, far, more=(), **given):
    """Two in-cluster tiers, the first with as many replicas as `near`, and an external one."""
    tiers = [
        in_cluster(),
        in_cluster("large", model="qwen3-235b"),
        external(f"http://localhost:{far.port}/v1", allowPlaintext=True, clearance="Public"),
    ]
    listed = [{"name": name, "weight": weights[name]} for name in NAMES if name in weights]
    given = {"affinity": {"header": "x-session-id"}, **given}
    classes = [{"name": "all", "tiers": listed, **given}]
    ports = {"legal/compact": [each.port for each in near], "legal/large": [each.port for each in more]}
    return world(tiers, [policy(classes=classes)], ports)


async def homes(lab, count=SESSIONS):
    """Session -> upstream that answered."""
    return {
        number: (await lab.ask(headers={"x-session-id": f"session-{number}"})).by or "nobody" for number in range(count)
    }


def moved(before, after):
    """Share of the sessions that are elsewhere now, percent."""
    return 100 * sum(before[each] != after[each] for each in before) / len(before)


async def test_a_session_stays_at_its_tier_and_its_replica(lab, upstream):
    near, x = [await upstream(name) for name in "abc"], await upstream("x")
    await lab.settle(three_tiers({"compact": 60, "frontier": 40}, near, x))
    first = await homes(lab, 100)
    assert set(first.values()) == {"a", "b", "c", "x"}
    for _ in range(4):
        assert await homes(lab, 100) == first


@pytest.mark.parametrize(
    ("weights", "then", "percent", "most"),
    [
        ({"compact": 80, "frontier": 20}, {"compact": 75, "frontier": 25}, 5, 7.5),
        # Of three tiers the one in the middle is pushed along.
        ({"compact": 50, "large": 30, "frontier": 20}, {"compact": 45, "large": 30, "frontier": 25}, 5, 13),
        ({"compact": 50, "large": 30, "frontier": 20}, {"compact": 45, "large": 35, "frontier": 20}, 5, 7.5),
    ],
)
async def test_when_weights_move_few_sessions_do(lab, upstream, weights, then, percent, most):
    near, x = [await upstream(name) for name in "abc"], await upstream("x")
    large = [await upstream("l")]
    await lab.settle(three_tiers(weights, near, x, large))
    before = await homes(lab)
    assert abs(sum(home == "x" for home in before.values()) - 10 * weights["frontier"]) < 60
    await lab.settle(three_tiers(then, near, x, large))
    after = await homes(lab)
    share = moved(before, after)
    print(f"{weights} -> {then}: {share:.1f}% of {SESSIONS} sessions moved")
    assert 0.4 * percent <= share <= most


async def test_a_session_whose_tier_fails_is_answered_elsewhere_and_comes_back(lab, upstream):
    a, x = await upstream("a"), await upstream("x")
    await lab.settle(three_tiers({"compact": 50, "frontier": 50}, [a], x))
    before = await homes(lab, 60)
    a.fault = "503"
    assert set((await homes(lab, 60)).values()) == {"x"}
    a.fault = ""
    assert await homes(lab, 60) == before


async def test_requests_without_a_session_are_spread(lab, upstream):
    a, x = await upstream("a"), await upstream("x")
    await lab.settle(three_tiers({"compact": 50, "frontier": 50}, [a], x))
    found = await lab.count(200)
    assert abs(found["a"] - 100) < 36


SYSTEM = {"role": "system", "content": "You are terse. " * 20}


def chat(question, *more, system=SYSTEM):
    return [system, {"role": "user", "content": question}, *more]


def turn(answer, question):
    return {"role": "assistant", "content": answer}, {"role": "user", "content": question}


def prefix(characters):
    return {"affinity": {"prefix": {"characters": characters}}}


async def homes_of(lab, bodies, **asked):
    return [(await lab.ask(**body, **asked)).by for body in bodies]


async def test_conversations_stay_where_they_began(lab, upstream):
    near, x = [await upstream(name) for name in "abc"], await upstream("x")
    await lab.settle(three_tiers({"compact": 60, "frontier": 40}, near, x, **prefix(4096)))
    found = set()
    for number in range(40):
        question = f"Question {number}"
        turns = [chat(question)]
        for each in range(4):
            turns.append([*turns[-1], *turn(f"Answer {each}", f'And {each}? "}}]')])
        homes = await homes_of(lab, [{"messages": messages} for messages in turns])
        assert len(set(homes)) == 1, homes
        found.add(homes[0])
    assert found == {"a", "b", "c", "x"}, "different conversations are spread over tiers and replicas"


async def test_only_the_start_of_the_prompt_counts(lab, upstream):
    near, x = [await upstream(name) for name in "abc"], await upstream("x")
    await lab.settle(three_tiers({"compact": 60, "frontier": 40}, near, x, **prefix(256)))
    alike = [{"messages": chat(f"Question {number}"), "temperature": number} for number in range(20)]
    assert len(set(await homes_of(lab, alike))) == 1, "the system prompt is longer than the key"
    other = [{"messages": chat("?", system={"role": "system", "content": f"{number} " * 200})} for number in range(40)]
    assert set(await homes_of(lab, other)) == {"a", "b", "c", "x"}
    await lab.settle(three_tiers({"compact": 60, "frontier": 40}, near, x, **prefix(512)))
    assert len(set(await homes_of(lab, alike))) > 1, "a longer key reaches the questions"


@pytest.mark.parametrize(
    ("path", "alike", "other"),
    [
        ("completions", {"prompt": "x" * 100 + "{}"}, {"prompt": "{}" + "x" * 100}),
        ("embeddings", {"input": ["x" * 100 + "{}"]}, {"input": ["{}" + "x" * 100]}),
        ("responses", {"instructions": "y" * 100, "input": "{}"}, {"instructions": "{}" + "y" * 100, "input": "x"}),
        ("responses", {"input": chat("x" * 90, *turn("{}", "{}"))[1:]}, {"input": chat("{}" + "x" * 90)[1:]}),
    ],
)
async def test_every_endpoint_has_a_start(lab, upstream, path, alike, other):
    near, x = [await upstream(name) for name in "abc"], await upstream("x")
    await lab.settle(three_tiers({"compact": 60, "frontier": 40}, near, x, **prefix(80)))

    def bodies(form):
        text = json.dumps({"model": "legal/assistant", **form})
        return [{"body": text.replace("{}", str(number)).encode()} for number in range(24)]

    assert len(set(await homes_of(lab, bodies(alike), path=f"/v1/{path}"))) == 1
    assert len(set(await homes_of(lab, bodies(other), path=f"/v1/{path}"))) > 2


async def test_the_key_stays_in_the_gateway_and_clients_can_not_choose_it(lab, upstream):
    near, x = [await upstream(name) for name in "abc"], await upstream("x")
    await lab.settle(three_tiers({"compact": 60, "frontier": 40}, near, x, **prefix(80)))
    spoofed = [await lab.ask(messages=chat("?"), headers={"x-tierwise-prefix": str(n)}) for n in range(20)]
    assert len({each.by for each in spoofed}) == 1
    seen = [each for one in (*near, x) for each in one.seen]
    assert len(seen) == 20
    assert not [name for each in seen for name in each.headers if name.startswith("x-tierwise")]
    without = await homes_of(lab, [{"body": b'{"model":"legal/assistant","n":1}'}] * 60)
    assert set(without) == {"a", "b", "c", "x"}, "no prompt, no key"


async def test_a_conversation_whose_tier_fails_is_answered_elsewhere(lab, upstream):
    a, x = await upstream("a"), await upstream("x")
    await lab.settle(three_tiers({"compact": 50, "frontier": 50}, [a], x, **prefix(512)))
    bodies = [{"messages": chat(f"Question {number}")} for number in range(30)]
    before = await homes_of(lab, bodies)
    assert set(before) == {"a", "x"}
    x.fault = "503"
    assert set(await homes_of(lab, bodies)) == {"a"}
    x.fault = ""
    assert await homes_of(lab, bodies) == before


async def test_when_weights_move_few_conversations_do(lab, upstream):
    near, x = [await upstream(name) for name in "abc"], await upstream("x")
    bodies = [{"messages": chat(f"Question {number}")} for number in range(SESSIONS)]
    await lab.settle(three_tiers({"compact": 80, "frontier": 20}, near, x, **prefix(512)))
    before = dict(enumerate(await homes_of(lab, bodies)))
    await lab.settle(three_tiers({"compact": 75, "frontier": 25}, near, x, **prefix(512)))
    share = moved(before, dict(enumerate(await homes_of(lab, bodies))))
    print(f"80/20 -> 75/25: {share:.1f}% of {SESSIONS} conversations moved")
    assert 2 <= share <= 7.5
