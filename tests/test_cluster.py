"""A Ray that is started here, beside others on the same machine; and clusters that are joined, or are not there."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import ray
from ray.util import state

from vlaad_ray.configs import UserError
from vlaad_ray.runtime import cluster

pytestmark = pytest.mark.usefixtures("ray_local")
ROOT = Path(__file__).parents[1]


@ray.remote
def nodes_it_sees():
    return [node.node_id for node in state.list_nodes()]


def test_its_processes_ask_its_own_dashboard():
    """Ray Train takes an actor for dead that the dashboard does not know, and ends its training."""
    assert ray.get(nodes_it_sees.remote()) == [ray.get_runtime_context().get_node_id()]
    assert "RAY_API_SERVER_ADDRESS" not in os.environ


def test_a_taken_dashboard_port_is_passed_over():
    taken = int(ray.get(dashboard_address.remote()).rpartition(":")[2])
    assert cluster.free_port(range(taken, taken + 50)) != taken
    with pytest.raises(OSError, match="all taken"):
        cluster.free_port(range(taken, taken + 1))


@ray.remote
def dashboard_address():
    return os.environ["RAY_API_SERVER_ADDRESS"]


def test_the_address_of_a_head_is_taken():
    cluster.check_address(ray.get_runtime_context().gcs_address)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http://127.0.0.1:8265", "is a dashboard, which takes submitted jobs only: ray job submit"),
        ("https://ray.example.org", "is a dashboard, which takes submitted jobs only"),
        ("gcs://127.0.0.1:6379", "gcs:// is none of Ray's; give auto, HOST:6379"),
        ("127.0.0.1", "is no address; give auto, HOST:6379"),
        ("head:gcs", "is no address"),
        ("nobody.invalid:6379", "nothing answers at nobody.invalid:6379"),
        ("127.0.0.1:9", "nothing answers at 127.0.0.1:9"),
        ("ray://127.0.0.1:9", "nothing answers at 127.0.0.1:9"),
    ],
)
def test_an_address_of_another_kind_or_of_nobody_is_explained_at_once(address, message):
    """Ray tried for 80 seconds and ended the process, or raised from deep inside."""
    with pytest.raises(UserError, match=re.escape(message)) as raised:
        cluster.check_address(address)
    assert str(raised.value).startswith(f"RAY_ADDRESS={address}")
    assert "\n" not in str(raised.value)


def test_a_port_where_something_else_answers_is_told_from_a_head(monkeypatch):
    """A dashboard speaks HTTP; a node's own service speaks as the head does, but knows none of its calls."""
    (node,) = ray.nodes()
    dashboard = ray.get(dashboard_address.remote()).removeprefix("http://")
    for other in (dashboard, f"127.0.0.1:{node['NodeManagerPort']}"):
        with pytest.raises(UserError, match="what answers there is no head of a Ray cluster"):
            cluster.check_address(other)
    monkeypatch.setattr(cluster, "ANSWER_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as mute, pytest.raises(UserError, match="no head of a Ray cluster"):
        cluster.check_address(f"127.0.0.1:{mute.getsockname()[1]}")


def test_a_cluster_that_asks_for_a_token_is_told_from_one_that_is_not_there(monkeypatch):
    """A local Ray guards itself with one. Without it Ray tries for 20 seconds and says that it failed to connect."""
    monkeypatch.delenv("RAY_AUTH_MODE")
    with pytest.raises(UserError, match="asks for a token; set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH unless"):
        cluster.check_address(ray.get_runtime_context().gcs_address)


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "127.0.0.1:9"])
def test_a_job_with_a_wrong_address_ends_in_one_line(tmp_path, address):
    command = [sys.executable, "jobs/collect.py", "--out", str(tmp_path / "out"), "--tasks", "0", "--init-states", "0"]
    environment = {**os.environ, "RAY_ADDRESS": address}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert re.fullmatch(rf"error: RAY_ADDRESS={re.escape(address)}.*\n", done.stderr)


def test_ray_data_is_not_driven_through_ray_client(monkeypatch):
    """It fails inside, where the client has no worker."""
    monkeypatch.setenv("RAY_ADDRESS", "ray://127.0.0.1:10001")
    with pytest.raises(UserError, match="Ray Data does not run through Ray Client; submit the job instead"):
        cluster.connect(ray_data=True)
