"""What a run was made under: figures without it say nothing."""

import os
import platform
import subprocess
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.rig import Rig
from bench.stage import OPUS_MIX

_REPOSITORY = Path(__file__).parents[1]


def machine() -> dict[str, Any]:
    """This machine, now, and what of the project runs on it."""
    return {
        "when": time.strftime("%Y-%m-%dT%H:%MZ", time.gmtime()),
        "relayctl": version("relayctl"),
        "commit": output("git", "-C", str(_REPOSITORY), "describe", "--always", "--dirty"),
        "kernel": platform.release(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load_1_min": round(os.getloadavg()[0], 2),
    }


def describe(rig: Rig, *, rounds: int, seconds: float) -> dict[str, Any]:
    """Of a run on a rig."""
    return {
        **machine(),
        "core": rig.core,
        "harness_core": rig.harness_core,
        "path": "three network namespaces, two veth pairs, native XDP; IPv4",
        "core_shared_by": "generator, relay and sink",
        "arrival": "singly: each packet has gone all its way before the next is made",
        "checksums": "full UDP checksums from the generator",
        "opus": f"payloads of {', '.join(map(str, OPUS_MIX))} bytes in turn",
        "order": "random",
        "rounds": rounds,
        "discarded_rounds": 1 if rounds > 1 else 0,
        "seconds": seconds,
        "go": output("go", "version"),
        "nginx": output("nginx", "-v").removeprefix("nginx version: "),
        "coturn": output("turnserver", "--version"),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def output(*command: str) -> str:
    """The first line that a command prints; empty where it is missing."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return next(iter((done.stdout or done.stderr).strip().splitlines()), "")
