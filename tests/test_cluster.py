"""A Ray that is started here, beside others on the same machine."""

import os

import pytest
import ray
from ray.util import state

from vlaad_ray.runtime import cluster

pytestmark = pytest.mark.usefixtures("ray_local")


@ray.remote
def nodes_it_sees():
    return [node.node_id for node in state.list_nodes()]


def test_its_processes_ask_its_own_dashboard():
    """Ray Train takes an actor for dead that the dashboard does not know, and ends its training."""
    assert ray.get(nodes_it_sees.remote()) == [ray.get_runtime_context().get_node_id()]
    assert "RAY_API_SERVER_ADDRESS" not in os.environ


def test_a_taken_dashboard_port_is_passed_over(monkeypatch):
    taken = int(ray.get(dashboard_address.remote()).rpartition(":")[2])
    monkeypatch.setattr(cluster, "DASHBOARD_PORTS", range(taken, taken + 50))
    assert cluster.free_port(cluster.DASHBOARD_PORTS) != taken
    monkeypatch.setattr(cluster, "DASHBOARD_PORTS", range(taken, taken + 1))
    with pytest.raises(OSError, match="all taken"):
        cluster.free_port(cluster.DASHBOARD_PORTS)


@ray.remote
def dashboard_address():
    return os.environ["RAY_API_SERVER_ADDRESS"]
