"""Requests of every kind whose tokens upstreams count by themselves, each in its own way.

A request tells the upstreams in its body what each of them shall do to it; what an upstream consumed and generated for
an attempt it writes down itself, whatever the gateway and the client see of it.
"""

import asyncio
import json
import random
import re
from collections import defaultdict
from dataclasses import dataclass, field

import aiohttp
from aiohttp import web

TEXTS = (
    "The quick brown fox jumps over the lazy dog. ",
    "Überraschung: naïve façade, œuvre — ",
    "价格为三百二十元。税率百分之七。",
    'He said "no"\\n\tand left\r\n \\u0041 \\\\u0042 ',
    "👩‍🚀 🚀🇪🇺 ",
    "def f(x):\n    return {'data: ': [x, \"usage\"]}\n\n",
    "العربية والعبرית ",
)
TEMPLATE = 60  # tokens that the upstreams' chat template adds, and 4 for each message
PICTURE = 1105
LABEL = re.compile(r'(\w+)="([^"]*)"')


def words(text):
    """Pieces of up to four characters, as common tokenizers make them of English."""
    return re.findall(r"\w{1,4}|\s+|[^\w\s]", text)


def octets(text):
    """The worst case: every byte is a token. A character's text comes with its last one."""
    return [part for char in text for part in ([""] * (len(char.encode()) - 1) + [char])]


@dataclass
class Attempt:
    """What an upstream says of one attempt: fate is what it did, tokens are what it bills."""

    request: str
    tier: str
    fate: str
    prompt: int
    completion: int = 0
    cached: int = 0


class Log(list):
    """What all upstreams wrote down, and which requests they have had."""

    def __init__(self):
        super().__init__()
        self.requests = set()

    def write(self, attempt):
        self.append(attempt)
        self.requests.add(attempt.request)


@dataclass
class Metered:
    """An upstream that counts."""

    tier: str
    tokenize: object
    log: Log
    port: int = 0

    async def start(self):
        app = web.Application(client_max_size=32 << 20)
        app.router.add_post("/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0, backlog=1024)
        await site.start()
        self.port = site._server.sockets[0].getsockname()[1]
        return self

    async def stop(self):
        await self._runner.cleanup()

    def _prompt(self, path, asked):
        if path.endswith("embeddings"):
            return sum(len(self.tokenize(text)) + 2 for text in asked["input"])
        if path.endswith("/completions") and "prompt" in asked:
            return sum(len(self.tokenize(text)) + 1 for text in asked["prompt"])
        tokens = TEMPLATE
        for message in asked.get("messages") or asked["input"]:
            parts = message["content"]
            for part in parts if isinstance(parts, list) else [{"text": parts}]:
                tokens += PICTURE if "image_url" in part else len(self.tokenize(part["text"]))
            tokens += 4
        return tokens

    async def _answer(self, request):
        asked = json.loads(await request.read())
        assert not [name for name in request.headers if "tierwise" in name.lower()], request.headers
        told = json.loads(asked["user"])
        dice = random.Random(f"{told['id']}/{self.tier}")
        fate = told["fates"][self.tier]
        attempt = Attempt(told["id"], self.tier, fate, self._prompt(request.path, asked))
        attempt.cached = dice.randrange(attempt.prompt + 1)
        self.log.write(attempt)
        if fate.isdigit():
            return web.json_response({"error": {"message": "as told"}}, status=int(fate))
        answer = _Answer(self, request, asked, attempt, dice)
        if fate in ("slow", "hang", "reset"):  # it works on, whether anybody waits or not
            attempt.completion = sum(len(tokens) + 1 for tokens in answer.choices)
            if fate == "reset":
                request.transport.abort()
            else:
                await asyncio.sleep(30)
            return web.Response(status=500)
        try:
            return await (answer.stream() if asked.get("stream") else answer.whole())
        except ConnectionError:  # nobody is there any more
            return web.Response()


@dataclass
class Scripted:
    """An upstream that sends these pieces of a stream one by one, then ends; or never, with `hold`.

    With `silent` it sends nothing at all.
    """

    pieces: list = field(default_factory=list)
    hold: bool = False
    silent: bool = False
    port: int = 0

    async def start(self):
        app = web.Application()
        app.router.add_post("/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.port = site._server.sockets[0].getsockname()[1]
        return self

    async def stop(self):
        await self._runner.cleanup()

    async def _answer(self, request):
        if self.silent:
            await asyncio.sleep(5)
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for piece in self.pieces:
            await response.write(piece)
            await asyncio.sleep(0.003)
        if self.hold:
            await asyncio.sleep(5)
        return response


class _Answer:
    def __init__(self, upstream, request, asked, attempt, dice):
        self.request, self.asked, self.attempt, self.dice = request, asked, attempt, dice
        self.path = request.path.rsplit("/v1", 1)[-1]
        self.headers = {"x-low-confidence": "true"} if attempt.fate.startswith("low") else {}
        # Every choice's tokens; each ends with one that has no text.
        count = asked.get("n", 1) * (len(asked["prompt"]) if "prompt" in asked else 1)
        limit = next((asked[k] for k in ("max_tokens", "max_completion_tokens", "max_output_tokens") if k in asked), 0)
        self.most = limit * count
        endless = attempt.fate in ("break", "leave", "slow", "hang", "reset")
        self.choices = []
        for _ in range(0 if self.path == "/embeddings" else count):
            text = "".join(dice.choice(TEXTS) for _ in range(30 if endless else dice.randrange(1, 4)))
            tokens = upstream.tokenize(text)
            self.choices.append(tokens[: limit - 1] if limit else tokens)

    @property
    def usage(self):
        used = self.attempt
        if self.path == "/responses":
            return {
                "input_tokens": used.prompt,
                "input_tokens_details": {"cached_tokens": used.cached},
                "output_tokens": used.completion,
                "total_tokens": used.prompt + used.completion,
            }
        usage = {"prompt_tokens": used.prompt, "total_tokens": used.prompt + used.completion}
        if self.path != "/embeddings":
            usage |= {
                "completion_tokens": used.completion,
                "prompt_tokens_details": {"cached_tokens": used.cached, "audio_tokens": 0},
            }
        return usage

    def _reports(self):
        return self.attempt.fate not in ("silent", "break", "leave")

    def _json(self, value):
        return json.dumps(value, ensure_ascii=self.dice.random() < 0.5).encode()

    async def whole(self):
        self.attempt.completion = sum(len(tokens) + 1 for tokens in self.choices)
        texts = ["".join(tokens) for tokens in self.choices]
        body = {"id": self.attempt.request, "object": "answer", "model": "m"}
        if self.path == "/responses":
            body["output"] = [{"type": "message", "content": [{"type": "output_text", "text": t}]} for t in texts]
        elif self.path == "/embeddings":
            body["data"] = [{"index": 0, "embedding": [self.dice.random() for _ in range(64)]}]
        else:
            body["choices"] = [{"index": i, "message": {"content": t}, "text": t} for i, t in enumerate(texts)]
        if self._reports():
            body["usage"] = self.usage
        response = web.StreamResponse(headers={"content-type": "application/json", **self.headers})
        await response.prepare(self.request)
        raw = self._json(body)
        cut = self.dice.randrange(len(raw))
        await response.write(raw[:cut])
        if self.attempt.fate == "break":
            await asyncio.sleep(0.01)
            self.request.transport.abort()
            return response
        await response.write(raw[cut:])
        return response

    def _event(self, index, text, finish):
        if self.path == "/responses":
            return {"type": "response.output_text.delta", "item_id": "msg_1", "output_index": index, "delta": text}
        choice = {"index": index, "finish_reason": finish, "logprobs": None}
        if self.path == "/completions":
            choice["text"] = text
        elif self.kind == "tool":
            choice["delta"] = {"tool_calls": [{"index": 0, "id": "call_1", "function": {"arguments": text}}]}
        else:
            choice["delta"] = {self.kind: text}
        event = {"id": self.attempt.request, "object": "chunk", "created": 1, "model": "m", "choices": [choice]}
        if self.asked.get("stream_options", {}).get("include_usage"):
            event["usage"] = None
        return event

    async def stream(self):
        response = web.StreamResponse(headers={"content-type": "text/event-stream", **self.headers})
        await response.prepare(self.request)
        self.kind = self.dice.choice(["content", "content", "reasoning_content", "tool"])
        together = self.dice.choice([1, 1, 1, 4])  # tokens in an event
        asked_ascii = self.dice.random() < 0.5
        queue = [
            (index, "".join(tokens[at : at + together]), len(tokens[at : at + together]))
            for index, tokens in enumerate(self.choices)
            for at in range(0, len(tokens), together)
        ]
        self.dice.shuffle(queue)
        queue += [(index, "", 1) for index in range(len(self.choices))]
        breaks = self.dice.randrange(1, 40) if self.attempt.fate == "break" else None
        endless = self.attempt.fate == "leave"
        pending = b""
        number = 0
        while queue:
            index, text, tokens = queue.pop(0)
            if endless and self.most and self.attempt.completion + tokens > self.most:
                await response.write(b": nothing more, and no end\n\n")
                await asyncio.sleep(0.01)
                queue.append((index, text, tokens))
                continue
            if endless:
                queue.append((index, text, tokens))  # the client will leave
            number += 1
            self.attempt.completion += tokens  # before anybody sees it
            event = json.dumps(self._event(index, text, None if text else "stop"), ensure_ascii=asked_ascii)
            pending += f"data: {event}\n\n".encode()
            if number == breaks:
                await response.write(pending)
                await asyncio.sleep(0.01)
                self.request.transport.abort()
                return response
            if not endless and self.dice.random() < 0.5:
                continue  # several in one piece
            # In pieces that end anywhere; what is not sent yet has been generated none the less.
            cut = self.dice.randrange(1, len(pending) + 1) if self.dice.random() < 0.3 else len(pending)
            await response.write(pending[:cut])
            pending = pending[cut:]
            await asyncio.sleep(0.002 if endless else 0)
        if self._reports():
            pending += self._usage_event()
        await response.write(pending + b"data: [DONE]\n\n")
        return response

    def _usage_event(self):
        if self.path == "/responses":
            assert "stream_options" not in self.asked, "an option that it does not know"
            whole = {"type": "response.completed", "response": {"output": ["x" * 70_000], "usage": self.usage}}
            return f"event: response.completed\ndata: {json.dumps(whole)}\n\n".encode()
        assert self.asked["stream_options"]["include_usage"] is True, "the gateway asks for it"
        return f"data: {json.dumps({'choices': [], 'usage': self.usage})}\n\n".encode()


async def counted(lab):
    """(quantity, reason) by (namespace, policy, class, tier, consumer)."""
    found = defaultdict(lambda: defaultdict(int))
    for series, value in (await lab.metrics()).items():
        name, labels = series.split("{", 1)
        of = dict(LABEL.findall(labels))
        who = tuple(of.get(f"tierwise_{key}") for key in ("namespace", "policy", "class", "tier", "consumer"))
        found[who][name.removeprefix("envoy_tierwise_"), of.get("reason", "")] += int(value)
    return found


# What happens to a request: fates at its first and second tier, who ends it, and how often.
STORIES = {
    "answered": ("ok", None, 40),
    "silent": ("silent", None, 9),
    "left": ("leave", None, 12),
    "left before": ("hang", None, 3),
    "broken": ("break", None, 7),
    "error": ("400", None, 2),
    "after an error": ("500", "ok", 6),
    "after a limit": ("429", "ok", 3),
    "after a reset": ("reset", "ok", 4),
    "after a time-out": ("slow", "ok", 1),
    "doubted": ("low", "ok", 6),
    "doubted twice": ("low", "low last", 3),
    "error, then left": ("500", "leave", 2),
    "doubted, then silent": ("low", "silent", 1),
}
ENDPOINTS = (
    *("/v1/chat/completions",) * 5,
    *("/v1/completions",) * 2,
    "/v1/embeddings",
    *("/v1/responses",) * 2,
)


@dataclass
class Request:
    """One request, and who is charged for it."""

    id: str
    namespace: str
    policy: str
    kind: str
    consumer: str
    story: str
    path: str
    body: dict

    @property
    def bounded(self):
        return any(key in self.body for key in ("max_tokens", "max_completion_tokens", "max_output_tokens"))

    @property
    def picture(self):
        return "image_url" in json.dumps(self.body.get("messages", ""))


def make(number, dice, namespaces, policies, consumers):
    """A request by chance."""
    story = dice.choices(list(STORIES), [weight for *_, weight in STORIES.values()])[0]
    first, second, _ = STORIES[story]
    path = dice.choice(ENDPOINTS)
    if first in ("leave", "break") or second == "leave":
        path = dice.choice([each for each in ENDPOINTS if "embeddings" not in each])
    namespace, policy, consumer = dice.choice(namespaces), dice.choice(policies), dice.choice(consumers)
    told = {"id": f"r{number}", "fates": {f"{namespace}/compact": first, f"{namespace}/large": second}}
    text = "".join(dice.choice(TEXTS) for _ in range(dice.choice([1, 3, 10, 60])))
    body = {"user": json.dumps(told)}
    if path.endswith("chat/completions"):
        body["messages"] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}]
        if dice.random() < 0.05:
            parts = [{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": "https://x.example/"}}]
            body["messages"].append({"role": "user", "content": parts})
        body |= dice.choice([{}, {"max_tokens": 300}, {"max_completion_tokens": 400}])
    elif path.endswith("/completions"):
        body["prompt"] = [text, "and, [more]", "x"][: dice.choice([1, 1, 3])]
        body |= dice.choice([{}, {"max_tokens": 200}])
    elif path.endswith("embeddings"):
        body["input"] = [text, "another"]
    else:
        body["input"] = [{"role": "user", "content": text}]
        body |= dice.choice([{}, {"max_output_tokens": 300}])
    if "completions" in path:
        body |= dice.choice([{}, {}, {}, {"n": 2}, {"n": 3}])
    streams = "embeddings" not in path and dice.random() < 0.6
    if streams or "leave" in (first, second):
        body["stream"] = True
        if "completions" in path:
            options = [{}, {"stream_options": {"include_usage": True}}, {"stream_options": {"include_usage": False}}]
            body |= dice.choice(options)
    kind = "patient" if story == "after a time-out" else dice.choice(["plain", "other"])
    items = list(body.items())
    dice.shuffle(items)
    items.insert(dice.randrange(len(items) + 1), ("model", f"{namespace}/{policy}"))
    body = dict(items)
    return Request(f"r{number}", namespace, policy, kind, consumer, story, path, body)


async def send(http, port, request, key, log, dice):
    """Send it, and leave when its story says so. Returns the status (0: left before there was one)."""
    raw = json.dumps(request.body, ensure_ascii=dice.random() < 0.5).encode()
    headers = {"content-type": "application/json", "x-class": request.kind, "authorization": f"Bearer {key}"}
    url = f"http://127.0.0.1:{port}{request.path}"
    posting = http.post(url, data=raw, headers=headers, timeout=aiohttp.ClientTimeout(60))
    if request.story == "left before":
        waiting = asyncio.ensure_future(posting)
        while request.id not in log.requests:  # before the upstream has it, nobody can say whether it costs anything
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1 * dice.random())
        waiting.cancel()
        await asyncio.wait([waiting])
        assert waiting.cancelled(), request
        return 0
    leaves = "leave" in STORIES[request.story][:2]
    asked = request.body.get("stream_options", {}).get("include_usage")
    try:
        async with posting as response:
            seen, until = 0, dice.randrange(40) if leaves else None
            async for piece in response.content.iter_any():
                seen += piece.count(b"data: ")
                # Many clients close at the last event, and do not wait for the end of the answer.
                over = asked and b'"choices": []' in piece and dice.random() < 0.3
                if over or (until is not None and seen >= until):
                    response.close()
                    break
            return response.status
    except aiohttp.ClientPayloadError:
        assert request.story == "broken", request
        return 200


@dataclass
class Truth:
    """What one (namespace, policy, class, tier, consumer, reason) really cost; no reason where usage was reported."""

    attempts: int = 0
    prompt: int = 0
    completion: int = 0
    cached: int = 0
    unbounded: int = 0


REASONS = {"silent": "unreported", "leave": "aborted", "break": "aborted", "hang": "aborted"}
REASONS |= {"low": "discarded", "slow": "discarded", "reset": "discarded", "ok": "", "low last": ""}


def truth(requests, log):
    """Sums of what upstreams wrote down; error statuses cost nothing."""
    found = defaultdict(Truth)
    for attempt in log:
        if attempt.fate.isdigit():
            continue
        request = requests[attempt.request]
        tier = attempt.tier.split("/")[1]
        sums = found[request.namespace, request.policy, request.kind, tier, request.consumer, REASONS[attempt.fate]]
        sums.attempts += 1
        sums.cached += 0 if "embeddings" in request.path else attempt.cached
        streamed = attempt.fate in ("silent", "leave") or (attempt.fate == "break" and "stream" in request.body)
        generates = "embeddings" not in request.path
        no_limit = generates and not request.bounded and not streamed
        reported = not REASONS[attempt.fate]
        sums.unbounded += not reported and (no_limit or request.picture)
        # What nothing bounds is counted apart, and stands in no sum.
        sums.prompt += attempt.prompt if reported or not request.picture else 0
        sums.completion += attempt.completion if reported or not no_limit else 0
    return found
