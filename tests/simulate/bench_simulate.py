"""A day of a million requests under the real planner: prints how long `tierwise simulate` takes on this machine."""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from click.testing import CliRunner

from tierwise.cli import cli

MANIFESTS = """
apiVersion: tierwise.dev/v1alpha1
kind: ModelTier
metadata: {name: small}
spec:
  model: small
  clearance: Internal
  inCluster:
    image: vllm/vllm-openai:v0.24.0
    modelSource: Qwen/Qwen3-8B
    price: {perReplicaHour: "2.95"}
    replicas: {min: 1, max: 20, startupSeconds: 120}
  quality: [{task: chat, score: "0.80"}, {task: code, score: "0.60"}]
---
apiVersion: tierwise.dev/v1alpha1
kind: ModelTier
metadata: {name: large}
spec:
  model: large
  clearance: Internal
  inCluster:
    image: vllm/vllm-openai:v0.24.0
    modelSource: Qwen/Qwen3-32B
    args: [--tensor-parallel-size=2]
    price: {perReplicaHour: "5.90"}
    replicas: {min: 1, max: 40, startupSeconds: 180}
  quality: [{task: chat, score: "0.90"}, {task: code, score: "0.80"}]
---
apiVersion: tierwise.dev/v1alpha1
kind: RoutingPolicy
metadata: {name: assistant}
spec:
  models: [assistant]
  sensitivity: Internal
  referenceTier: large
  classes:
    - name: code
      task: code
      match: {headers: [{name: x-class, value: code}]}
      objective: {ttftP95: 3s, interTokenP95: 60ms}
      quality: {minScore: "0.75"}
      tiers: [{name: small}, {name: large}]
    - name: chat
      task: chat
      objective: {ttftP95: 2s, interTokenP95: 60ms}
      quality: {minScore: "0.83"}
      tiers: [{name: small}, {name: large}]
"""


def trace(path: Path, count: int, prompt: float, output: float, seed: int) -> None:
    """A day with one peak, of lognormal lengths."""
    source = np.random.default_rng(seed)
    t = np.sort(86400 * source.beta(2.2, 2.2, count))
    prompts, outputs = (
        np.clip(np.rint(median * np.exp(0.8 * source.standard_normal(count))), 1, 30_000) for median in (prompt, output)
    )
    rows = np.column_stack((t, prompts, outputs))
    np.savetxt(path, rows, "%.3f,%d,%d", header="t_s,prompt_tokens,output_tokens", comments="")


def main() -> None:
    """Make the files, run, print."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    with tempfile.TemporaryDirectory() as folder:
        manifests, code, chat = (Path(folder, name) for name in ("manifests.yaml", "code.csv", "chat.csv"))
        manifests.write_text(MANIFESTS)
        trace(code, count // 4, 1500, 150, 1)
        trace(chat, count - count // 4, 500, 130, 2)
        began, busy = time.monotonic(), time.process_time()
        done = CliRunner().invoke(
            cli,
            ["simulate", "-f", str(manifests), "--trace", f"code={code}", "--trace", f"chat={chat}", "--speed", "fast"],
            catch_exceptions=False,
        )
        print(done.output)
        print(
            f"{count:,} requests of a day: {time.monotonic() - began:.1f} s, {time.process_time() - busy:.1f} s of one "
            "processor, reading the files and baselines included"
        )
    sys.exit(done.exit_code)


if __name__ == "__main__":
    main()
