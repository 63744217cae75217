"""`vlaad doctor`: is this machine ready? A line for each check; what is broken comes with what to do about it.

Every check is a function that returns a Finding. What may end a process (OpenGL) or hang (Ray) runs in one of its own.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from vlaad_ray.configs import DoctorConfig, UserError

NAME = "vlaad-ray"
PYTHONS = ((3, 11), (3, 13))
"""Oldest and newest: MuJoCo 3.3.2 has wheels for these."""
SHARED_MEMORY = Path("/dev/shm")
GB = 10**9
RAISED = re.compile(r"(?:[\w.]+\.)?\w*(?:Error|Exception|Exit): (.+)")
"""The end of a traceback. Its first is the cause; others come of it."""
DRAWING_S, RAY_S = 60, 120
"""Longest that a check may take."""
RAY_STARTS = """
import os, ray
from vlaad_ray.runtime import cluster
cluster.connect()
found = ray.cluster_resources()
where = os.environ.get("RAY_ADDRESS", "started here")
size = ", ".join(f"{found.get(name, 0):g} {name}s" for name in ("CPU", "GPU"))
print(f"{ray.__version__}, {where}: {len(ray.nodes())} nodes, {size}")
"""
TORCH = """
import torch
print(torch.__version__, torch.cuda.device_count(), torch.ops.mkldnn._is_mkldnn_bf16_supported())
"""


@dataclass(frozen=True)
class Finding:
    """What a check found. Without a remedy all is well."""

    what: str
    found: str
    remedy: str = ""
    broken: bool = True
    """With a remedy: whether work is bound to fail, or only worse than it could be."""

    def __str__(self) -> str:
        mark = "ok" if not self.remedy else "BROKEN" if self.broken else "note"
        return f"{mark:8}{self.what:15}{self.found}" + (f"; {self.remedy}" if self.remedy else "")


def examine(config: DoctorConfig) -> Iterator[Finding]:
    """All checks, each as soon as it is done."""
    yield python(sys.version_info[:3])
    installed = installed_packages()
    for extra in config.extras:
        yield packages(extra, installed)
    yield shared_memory(shutil.disk_usage(SHARED_MEMORY).total if SHARED_MEMORY.is_dir() else 0, memory())
    yield from disks(config.out)
    if "torch" in installed:
        yield torch(gpus())
    if "mujoco" in installed:
        yield drawing()
    if "ray" in installed:
        yield ray()


def run(config: DoctorConfig) -> None:
    """Print what is found; exit with 1 where something is broken."""
    findings = []
    for finding in examine(config):
        print(finding, flush=True)
        findings.append(finding)
    if broken := [finding.what for finding in findings if finding.remedy and finding.broken]:
        print(f"\n{len(broken)} of {len(findings)} checks found something broken: {', '.join(broken)}")
        sys.exit(1)
    print(f"\nAll {len(findings)} checks passed.")


def python(version: tuple[int, ...]) -> Finding:
    oldest, newest = PYTHONS
    remedy = "" if oldest <= version[:2] <= newest else "make an environment with Python 3.11, 3.12 or 3.13"
    return Finding("Python", ".".join(map(str, version)), remedy)


def installed_packages() -> Mapping[str, str]:
    """Canonical name -> version. Of two with one name the one that Python imports."""
    found: dict[str, str] = {}
    for distribution in metadata.distributions():
        found.setdefault(canonicalize_name(distribution.metadata["Name"]), distribution.version)
    return found


def packages(extra: str, installed: Mapping[str, str]) -> Finding:
    """Whether all that the extra asks for is there, in a version that it allows."""
    what, remedy = f"[{extra}]", f"type: pip install '{NAME}[{extra}]'"
    if NAME not in installed:
        return Finding(what, f"{NAME} itself is not installed", remedy)
    if extra not in (known := metadata.metadata(NAME).get_all("Provides-Extra", [])):
        raise UserError(f"--extras {extra}: {NAME} has no such extra; choose of {', '.join(sorted(known))}")
    asked = requirements(extra)
    wrong = []
    for requirement in asked:
        version = installed.get(canonicalize_name(requirement.name))
        if version is None:
            wrong.append(f"{requirement.name} is missing")
        elif not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} is {version}, not {requirement.specifier}")
    if wrong:
        return Finding(what, ", ".join(wrong), remedy)
    return Finding(what, f"{len(asked)} packages")


def requirements(extra: str) -> list[Requirement]:
    """What an extra asks for. Our wheel's metadata has resolved the extras that stand on others."""
    asked = [Requirement(line) for line in metadata.requires(NAME) or ()]
    return [each for each in asked if each.marker is None or each.marker.evaluate({"extra": extra})]


def memory() -> int:
    """Bytes of RAM."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def shared_memory(size: int, ram: int) -> Finding:
    """Ray keeps what its processes share there: it asks for 30 % of the RAM, and goes to /tmp where it gets less."""
    found, wanted = f"{size / GB:.1f} GB of {ram / GB:.0f} GB RAM", 0.3 * ram
    remedy = f"give the container more: docker run --shm-size={wanted / GB:.0f}g, or a Memory emptyDir in a pod"
    return Finding("shared memory", found, remedy if size < wanted else "", broken=size < GB)


def disks(out: Path) -> Iterator[Finding]:
    """Room for outputs, and for Ray, which stops working on a disk that is 95 % full."""
    place = out.resolve()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    remedy = f"make room: 800 episodes with pictures take 0.5 GB, a run of training 0.1 to 2 GB ({place})"
    yield Finding("disk", f"{free / GB:.0f} GB free at {place}", remedy if free < 5 * GB else "", broken=free < GB)
    scratch = Path(tempfile.gettempdir())
    usage = shutil.disk_usage(scratch)
    full = 1 - usage.free / usage.total
    remedy = f"make room, or give Ray another place: RAY_TMPDIR ({scratch})"
    yield Finding("scratch", f"{scratch} is {100 * full:.0f} % full", remedy if full > 0.95 else "")


def gpus() -> list[str]:
    """Names of NVIDIA's GPUs, as the driver knows them."""
    if shutil.which("nvidia-smi") is None:
        return []
    done = subprocess.run(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True)
    return done.stdout.split("\n")[:-1] if done.returncode == 0 else []


def torch(cards: Sequence[str]) -> Finding:
    """`cards`: what the driver knows of."""

    def judge(said: str) -> Finding:
        version, count, bf16 = said.split()
        if cards and count == "0":
            remedy = "install a build of torch for CUDA; training and students would run on CPUs"
            return Finding("torch", f"{version} sees none of {len(cards)} GPUs ({cards[0]})", remedy, broken=False)
        if cards:
            return Finding("torch", f"{version}, {count} GPUs: {cards[0]}")
        slow = "" if bf16 == "True" else "train with --precision fp32: this CPU has no fast bf16"
        return Finding("torch", f"{version} on CPUs, no GPU", slow, broken=False)

    return asked("torch", [sys.executable, "-c", TORCH], RAY_S, judge, "reinstall torch")


def drawing() -> Finding:
    remedy = "install OpenGL: apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri libgl1 libglib2.0-0"
    command = [sys.executable, "-m", "vlaad_ray.envs.check_rendering"]
    return asked("drawing", command, DRAWING_S, lambda driver: Finding("drawing", driver), remedy, MUJOCO_GL="egl")


def ray() -> Finding:
    remedy = "see that nothing else holds its ports, and that RAY_ADDRESS, if set, names a running cluster"
    return asked("Ray", [sys.executable, "-c", RAY_STARTS], RAY_S, lambda said: Finding("Ray", said), remedy)


def asked(
    what: str, command: Sequence[str], seconds: float, judge: Callable[[str], Finding], remedy: str, **environment: str
) -> Finding:
    """What the last line of a process's output tells; the last line of its errors, and the remedy, where it failed."""
    settings = {"MUJOCO_GL": "egl", **os.environ, **environment}
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as complaints:
        process = subprocess.Popen(command, env=settings, stdout=said, stderr=complaints)
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return Finding(what, f"no answer in {seconds} s", remedy)
        lines = []
        for file in (said, complaints):
            file.seek(0)
            lines.append([line for line in file.read().splitlines() if line.strip()])
    if code == 0 and lines[0]:
        return judge(lines[0][-1])
    errors = [match[1] for line in lines[1] if (match := RAISED.match(line))]
    why = errors[0] if errors else lines[1][-1] if lines[1] else "it says nothing"
    return Finding(what, why if code > 0 else f"ended by signal {-code}: {why}", remedy)
