"""What is asked of several nodes at once, on a real Ray of several (fake) nodes and on one with a real autoscaler."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import fakes
import psutil
import pytest
import synthetic
from ray.cluster_utils import Cluster
from ray.util import get_node_ip_address

ROOT = Path(__file__).parents[1]
SMALL = {"object_store_memory": 10**8}
TRAINING = "train --data {data} --objective bc --epochs 1 --batch-size 16 --chunk 1 --image-size 32 --precision fp32"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return synthetic.write_dataset(tmp_path_factory.mktemp("data"), 4, steps=8)[0]


@pytest.fixture(scope="module")
def address():
    """The shape of cluster/rayjob.yaml, its GPU node up: a head without CPUs, two nodes of 16, one of 8 with a GPU."""
    fake = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": True, **SMALL})
    for cpus, gpus in ((16, 0), (16, 0), (8, 1)):
        fake.add_node(num_cpus=cpus, num_gpus=gpus, **SMALL)
    yield fake.address
    fake.shutdown()


def run(words, address, out, **environment):
    """One job on the cluster -> (exit status, stdout, stderr)."""
    job, *flags = words.split()
    command = [sys.executable, f"jobs/{job}.py", *flags, "--out", str(out)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "RAY_ADDRESS": address, **environment}, capture_output=True, text=True
    )
    return done.returncode, done.stdout, done.stderr


def test_training_with_a_gpu_starts_on_the_node_that_has_one(address, data, tmp_path):
    """Its worker asked for all CPUs of the cluster, which no node has. The GPU is fake: it is enough to find that."""
    status, _, error = run(TRAINING.format(data=data) + " --gpus-per-worker 1", address, tmp_path / "out")
    assert status == 2, error[-3000:]
    assert "--gpus-per-worker: torch on the workers' node cannot use its GPU" in error.splitlines()[-1]


def test_one_worker_trains_on_one_of_several_nodes(address, data, tmp_path):
    """It asked for 39.5 CPUs of 16."""
    status, _, error = run(TRAINING.format(data=data) + " --workers 1", address, tmp_path / "out")
    assert status == 0, error[-3000:]
    assert (tmp_path / "out/checkpoint/model.safetensors").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            TRAINING + " --gpus-per-worker 2",
            "no node has 1 CPU and 2 GPUs for a worker: the largest has 8 CPUs and 1 GPU",
        ),
        (
            TRAINING + " --workers 64",
            "64 workers of 1 CPU do not fit: the nodes have room for 40 (the largest has 16 CPU",
        ),
        (
            "collect --tasks 0 --init-states 0 --cpus-per-actor 64",
            "no node has 64 CPUs for an actor: the largest has 16",
        ),
        ("pipeline --tasks 0 --gpus-per-worker 2", "no node has 1 CPU and 2 GPUs for a worker: the largest has 8 CPUs"),
        (
            "collect --tasks 0 --init-states 0 --gpus-per-actor 2",
            "no node has 1 CPU and 2 GPUs for an actor: the largest has 8 CPUs and 1 GPU",
        ),
    ],
)
def test_what_no_node_has_is_said_at_once_instead_of_waited_for(address, data, tmp_path, words, message):
    status, _, error = run(words.format(data=data), address, tmp_path / "out")
    assert status == 2
    assert re.fullmatch(rf"error: {re.escape(message)}.*\n", error)
    assert not (tmp_path / "out/data").exists(), "a pipeline would collect for an hour before it trains"


OPEN = {"RAY_AUTH_MODE": "disabled"}
"""A head that `ray start` starts else asks for the token that an earlier Ray has left in the user's home."""
HEAD = "f" * 51 + "00000"
"""Node id that Ray's fake provider of nodes gives the head."""


@pytest.fixture(scope="module", params=["v1", "v2"])
def autoscaling(request):
    """A head without CPUs whose autoscaler can bring one node of two CPUs and a GPU -> (its version, its address)."""
    with socket.create_server(("", 0)) as first, socket.create_server(("", 0)) as second:
        port, client_port = first.getsockname()[1], second.getsockname()[1]
    place = f"{get_node_ip_address()}:{port}"
    folder = Path(tempfile.mkdtemp(prefix="ray"))  # sockets in it: the path must be short
    provider = {
        "type": "external",
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        "gcs_address": place,
        **{"use_node_id_as_ip": True, "disable_node_updaters": True, "disable_launch_config_check": True},
        **{"launch_multiple": True, "head_node_id": HEAD},
    }
    node_types = {  # the provider's own name for the head
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "gpus": {"resources": {"CPU": 2, "GPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 1},
    }
    config = {
        "cluster_name": "fake",
        "provider": provider,
        "available_node_types": node_types,
        "head_node_type": "ray.head.default",
        "max_workers": 1,
        "idle_timeout_minutes": 10,
        **{part: {} for part in ("auth", "docker", "file_mounts")},
        **{part: [] for part in ("cluster_synced_files", "rsync_exclude", "rsync_filter", "initialization_commands")},
        **{part: [] for part in ("setup_commands", "head_setup_commands", "worker_setup_commands")},
        **{part: [] for part in ("head_start_ray_commands", "worker_start_ray_commands")},
    }
    (folder / "config.json").write_text(json.dumps(config))
    environment = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_enable_autoscaler_v2": "0"}
    if request.param == "v2":
        environment |= {"RAY_enable_autoscaler_v2": "1", "RAY_CLOUD_INSTANCE_ID": HEAD}
    environment |= {"RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD}
    command = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--num-cpus", "0", "--port", str(port)]
    command += ["--ray-client-server-port", str(client_port), "--include-dashboard", "false", "--temp-dir", str(folder)]
    command += ["--autoscaling-config", str(folder / "config.json"), "--object-store-memory", str(10**8)]
    subprocess.run(command, env={**os.environ, **OPEN, **environment}, check=True, capture_output=True)
    yield request.param, place
    alive = psutil.process_iter(["cmdline"])
    family = [process for process in alive if any(str(folder) in word for word in process.info["cmdline"] or ())]
    fakes.kill(family)
    psutil.wait_procs(family, timeout=60)
    shutil.rmtree(folder, ignore_errors=True)  # workers, which end when their node has, still write their logs


COLLECTION = "collect --tasks 0 --init-states 0 --image-every 1000 --image-size 32"


def test_what_an_autoscaler_cannot_bring_is_refused_at_once_or_not_waited_for_for_ever(autoscaling, tmp_path):
    """The second version knows at once that it has no such nodes, the first does not say."""
    version, address = autoscaling
    flags = " --gpus-per-actor 4 --wait-for-nodes-s 6"
    status, output, error = run(COLLECTION + flags, address, tmp_path / "out", **OPEN)
    assert status == 2, error
    assert re.fullmatch(r"error: no node has 1 CPU and 4 GPUs for an actor: .*\n", error)
    gave_up = "the autoscaler brought nothing that does within 6 s; ask for less, or raise --wait-for-nodes-s" in error
    assert gave_up == ("waiting for the autoscaler" in output) == (version == "v1")


def test_a_node_that_an_autoscaler_may_bring_is_waited_for_with_a_word(autoscaling, tmp_path):
    """When the job begins there is no CPU at all; --gpus-per-actor 0.5 makes the autoscaler bring the GPU node."""
    _, address = autoscaling
    status, output, error = run(COLLECTION + " --gpus-per-actor 0.5", address, tmp_path / "out", **OPEN)
    assert status == 0, error[-3000:]
    assert "waiting for the autoscaler to bring it, up to 900 s (--wait-for-nodes-s)" in " ".join(output.split())
    assert "collect: 1/1 kept" in output
