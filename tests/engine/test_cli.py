"""The command line hands a real engine's arguments on unchanged."""

import pytest
from click.testing import CliRunner

from tierwise import cli as whole
from tierwise.engine import cli


@pytest.mark.parametrize(
    "words",
    [
        ["vllm", "serve", "m", "-tp", "2", "--port=9000", "--enable-x", "--api-key", "k"],
        ["-tp", "2", "--model", "m", "--api-key", "k", "--port", "9000"],
        ["--port=9000", "--model=m", "--enable-x", "--api-key=k", "--tensor-parallel-size", "2"],
    ],
)
@pytest.mark.parametrize("through", [cli.engine, whole.cli])
def test_arguments_arrive(monkeypatch, words, through):
    seen = []

    async def serve(options):
        seen.append(options)

    monkeypatch.setattr(cli, "serve", serve)
    result = CliRunner().invoke(through, words if through is cli.engine else ["engine", *words])
    assert result.exit_code == 0, result.output
    (options,) = seen
    assert (options.model, options.port, options.api_keys) == ("m", 9000, ("k",))


def test_help_says_simulator():
    result = CliRunner().invoke(whole.cli, ["engine", "--help"])
    assert result.exit_code == 0
    assert "SIMULATOR" in result.output
