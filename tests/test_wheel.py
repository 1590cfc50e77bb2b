"""A worker's environment, made as pipeline/README.md says, from a wheel and the clone's resolution."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.sweeping import ROOT

COMMANDS = re.findall(r"^(?:uv build|uv export|uv pip install) .*", (ROOT / "pipeline" / "README.md").read_text(), re.M)


@pytest.mark.full
@pytest.mark.skipif(shutil.which("uv") is None, reason="uv is not installed")
def test_a_worker_is_installed_from_a_wheel_and_makes_the_driver_s_plan(tmp_path: Path) -> None:
    """About a minute where the packages are in uv's cache."""
    clone, worker = tmp_path / "clone", tmp_path / "worker"
    for directory in (clone, worker):
        directory.mkdir()
    for name in ("LICENSE", "README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, clone)
    for name in ("pipeline", "stages", "conf"):
        shutil.copytree(ROOT / name, clone / name)
    build, export, install = COMMANDS
    for command in (build, export):
        _run(command, clone)
    gpu = (clone / "dist" / "requirements.txt").read_text()
    assert {"vllm==0.26.0", "compressed-tensors==0.19.0"} <= set(gpu.splitlines())
    _run(export.replace("--extra gpu", "--extra cpu"), clone)
    for path in (clone / "dist").iterdir():
        shutil.copy(path, worker)
    _run("uv venv", worker)
    _run(install, worker)
    found = _run('python -c "import vllm, llmcompressor, compressed_tensors as it; print(it.__version__)"', worker)
    assert found.split()[-1] == "0.19.0"
    assert "4 trials, 29 steps" in _run("quantsweep +sweep=smoke mode=plan", worker)


def _run(command: str, directory: Path) -> str:
    """In a shell with nothing of this environment."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    kept["PATH"] = f"{directory / '.venv' / 'bin'}:{kept['PATH']}"
    if find_links := os.environ.get("PIP_FIND_LINKS"):  # where PyTorch's own index is out of reach
        kept |= {"UV_NO_SOURCES": "1", "UV_FIND_LINKS": find_links}
    done = subprocess.run(command, shell=True, cwd=directory, env=kept, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout
