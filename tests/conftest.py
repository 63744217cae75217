"""What all tests share: headless rendering, and one Ray for the whole session."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

# Before any test module imports MuJoCo, Ray or torch: each reads its variable once. Ray's workers inherit them.
os.environ.setdefault("MUJOCO_GL", "egl")
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
# A dashboard that takes more than its 60 s, as on a machine that trains beside the tests, takes the Ray head with it.
os.environ.setdefault("RAY_DASHBOARD_STARTUP_TIMEOUT_S", "300")
# Ray's workers import our fakes and plugins by name, as ours do.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
# The tests' own Ray, never a cluster that happens to run on this machine.
os.environ.pop("RAY_ADDRESS", None)
# Threads of processes side by side wait for each other: Ray's workers have one each, and so do tests beside others.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
# A server's token, if somebody has one set: tests bring their own.
os.environ.pop("VLAAD_TOKEN", None)

import pytest
import ray
import s3_server

from vlaad_ray.runtime import cluster

LONGEST = (
    "test_s3",
    "test_nodes",
    "test_vlm",
    "test_pipeline",
    "test_train",
    "test_rollout",
    "test_evaluate",
    "test_extending",
    "test_shared_students",
    "test_serving",
    "test_perturbed",
    "test_dagger",
    "test_distil",
    "test_egl",
    "test_reach",
    "test_numbers",
    "test_libero_stock",
    "test_libero_env",
    "test_places",
)
"""Files of a minute or so, begun first where two processes share the tests: at the end one would be waited for."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


@pytest.fixture(scope="session")
def ray_local(s3: s3_server.Server) -> Iterator[None]:
    """A Ray of two CPUs on this machine, started when the first test asks for it.

    With its dashboard, whose state API Ray Train asks for, and with the way to an S3 in its environment.
    """
    cluster.connect(num_cpus=2, include_dashboard=True, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def s3() -> Iterator[s3_server.Server]:
    """An S3 on this machine, in the environment of this process and of those that it starts from now on."""
    with s3_server.serving() as server:
        yield server


@pytest.fixture(scope="session")
def openvla_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """OpenVLA's layout with tiny random weights in fp32, in three files. Not to be changed."""
    import torch  # which few tests need

    from vlaad_ray.models.openvla.random_checkpoint import write_random_checkpoint

    directory = tmp_path_factory.mktemp("openvla")
    write_random_checkpoint(directory, "tiny", torch.float32, shard_bytes=8_500_000)
    assert len(list(directory.glob("model-*.safetensors"))) == 3
    return directory
