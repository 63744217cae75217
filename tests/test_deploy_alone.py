"""A robot's computer has the extra `deploy` and nothing else: a student loads and is served there."""

import importlib.metadata
import os
import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import numpy as np
import pytest
import synthetic
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from websockets.sync.client import connect

from vlaad_ray.serving import protocol
from vlaad_ray.types import Observation

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture
def checkpoint(tmp_path):
    return synthetic.write_student(tmp_path / "student")


def distributions_of_deploy() -> set[str]:
    """What pip would install: the requirements of the extra, theirs, and so on."""
    wanted = [Requirement(text) for text in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["deploy"]]
    found: set[str] = set()
    while wanted:
        requirement = wanted.pop()
        name = canonicalize_name(requirement.name)
        if name in found or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        found.add(name)
        wanted += [Requirement(text) for text in importlib.metadata.requires(name) or []]
    return found


ALONE = """
import sys
allowed = set({allowed})
class OnlyDeploy:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in allowed:
            raise ModuleNotFoundError(f"No module named {{name!r}} in the extra deploy", name=name)
sys.meta_path.insert(0, OnlyDeploy())
sys.argv = ["server", *sys.argv[1:]]
"""
SERVERS = {
    "module": 'import runpy; runpy.run_module("vlaad_ray.deploy.server", run_name="__main__")',
    "command": 'from vlaad_ray.main import main; main("server")',
}


def serve_and_ask(command, **environment):
    """Start a server and ask it once; the seconds that it took to listen."""
    start = time.monotonic()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
    ) as process:
        line = process.stdout.readline()
        listening = time.monotonic() - start
        assert line.startswith("serving "), process.stderr.read()
        with connect(line.split()[-1], compression=None, proxy=None) as connection:
            assert protocol.unpack(connection.recv(20))["policy"].startswith("student-")
            pixels = np.zeros((64, 64, 3), np.uint8)
            seen = Observation("pick up the milk", np.zeros(8, np.float32), {"agentview": pixels, "wrist": pixels})
            connection.send(protocol.pack(protocol.pack_observation(seen)))
            assert protocol.unpack(connection.recv(20))["actions"].shape == (5, 7)
        process.terminate()
    return listening


@pytest.mark.parametrize("start", SERVERS)
def test_serving_imports_nothing_beyond_the_extra(checkpoint, start):
    """An import of Ray, LIBERO or whatever else happens to be in this environment fails, as it would on a robot."""
    allowed, names = set(sys.stdlib_module_names) | {"vlaad_ray"}, distributions_of_deploy()
    assert not {"ray", "pyarrow", "mujoco", "peft"} & names
    for module, owners in importlib.metadata.packages_distributions().items():
        if names & {canonicalize_name(owner) for owner in owners}:
            allowed.add(module)
    code = ALONE.format(allowed=sorted(allowed)) + SERVERS[start]
    serve_and_ask([sys.executable, "-c", code, "--checkpoint", str(checkpoint), "--port", "0"])


@pytest.mark.slow
def test_a_fresh_environment_with_the_extra_alone_serves(checkpoint, tmp_path):
    """Says how long installing took and how large it is. Needs pip's registry."""
    python, start = tmp_path / "venv/bin/python", time.monotonic()
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    bare = size(tmp_path / "venv")
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    alone = {"PYTHONPATH": "", "PYTHONSAFEPATH": "1"}
    subprocess.run([*pip, f"{ROOT}[deploy]"], check=True, cwd=tmp_path, env={**os.environ, **alone})
    installed = time.monotonic() - start
    (torch,) = (tmp_path / "venv").glob("lib/*/site-packages/torch")
    grown = size(tmp_path / "venv") - bare
    print(f"installed in {installed:.0f} s: {grown / 1e6:.0f} MB, of which torch {size(torch) / 1e6:.0f} MB")
    listed = subprocess.run(
        [python, "-m", "pip", "list"], capture_output=True, text=True, check=True, env={**os.environ, **alone}
    ).stdout
    assert not re.search(r"^(ray|mujoco|pyarrow|peft) ", listed, re.MULTILINE)
    command = [str(python), "-m", "vlaad_ray.deploy.server", "--checkpoint", str(checkpoint), "--port", "0"]
    print(f"listening after {serve_and_ask(command, **alone):.1f} s")


def size(path: Path) -> int:
    return sum(each.stat().st_size for each in path.rglob("*") if each.is_file() and not each.is_symlink())
