"""How many processes nodes hold, and what each may ask for: by hand, without Ray."""

import math

import pytest

from vlaad_ray.configs import FleetConfig, StudyBudget, TrainConfig, UserError
from vlaad_ray.experiments.studies.workshop import training_shares
from vlaad_ray.rollout.fleet import count_actors
from vlaad_ray.runtime.placement import NoRoom, Processes, Share, divide, divide_groups, room, without
from vlaad_ray.train import workers


def node(cpus, gpus=0):
    return {"CPU": cpus, **({"GPU": gpus} if gpus else {}), "memory": 1e9}


CLUSTER = [{"memory": 1e9}, node(16), node(16), node(8, 1)]
"""As in cluster/rayjob.yaml: a head without CPUs, two nodes for simulators, one with a GPU."""


@pytest.mark.parametrize(
    ("nodes", "asked", "share"),
    [
        (CLUSTER, {"gpus_per_worker": 1.0}, Share(1, 8)),
        (CLUSTER, {"gpus_per_worker": 0.5, "workers": 2}, Share(2, 4)),
        (CLUSTER, {"workers": 1}, Share(1, 16)),
        (CLUSTER, {"workers": 2}, Share(2, 16)),
        (CLUSTER, {"workers": 3}, Share(3, 8)),
        (CLUSTER, {}, Share(40, 1)),
        ([node(16), node(16)], {"workers": 1}, Share(1, 16)),
        ([node(2)], {}, Share(2, 1)),
        ([node(2)], {"workers": 1}, Share(1, 2)),
        ([node(64, 8)], {"gpus_per_worker": 1.0}, Share(1, 8)),
        ([node(8, 1), node(64, 4)], {"gpus_per_worker": 1.0, "workers": 5}, Share(5, 8)),
        ([node(8, 1), node(64, 4)], {"gpus_per_worker": 1.0, "workers": 4}, Share(4, 16)),
        ([node(4, 8)], {"gpus_per_worker": 1.0, "workers": 4}, Share(4, 1)),
        ([node(32, 4)], {"gpus_per_worker": 2.0}, Share(1, 16)),
        ([node(16), node(7)], {"cpus_per_worker": 4}, Share(5, 4)),
    ],
)
def test_a_training_worker_never_asks_for_more_than_one_node_has(nodes, asked, share, tmp_path):
    config = TrainConfig(data=tmp_path, out=tmp_path, **asked)
    got = divide(nodes, workers.processes(config))
    assert got == share
    bundle = workers.scaling(got, config.gpus_per_worker)
    each = Processes("worker", 1, bundle.resources_per_worker["CPU"], bundle.resources_per_worker.get("GPU", 0.0))
    assert sum(room(there, each) for there in nodes) >= bundle.num_workers
    assert all(room(there, each) <= there.get("CPU", 0) for there in nodes), "Ray would pack more onto a node than CPUs"


@pytest.mark.parametrize(
    ("nodes", "asked", "message"),
    [
        (
            [node(2)],
            {"gpus": 1.0, "share": True},
            "no node has 1 CPU and 1 GPU for a worker: the largest has 2 CPUs and",
        ),
        (
            [node(2)],
            {"count": 64, "share": True},
            "64 workers of 1 CPU do not fit: the nodes have room for 2 (the large",
        ),
        (
            [node(2), node(1)],
            {"cpus": 64},
            "no node has 64 CPUs for a worker: the largest has 2 CPUs and no GPU; lower",
        ),
        (
            CLUSTER,
            {"cpus": 16, "gpus": 1.0},
            "no node has 16 CPUs and 1 GPU for a worker: the largest has 8 CPUs and 1",
        ),
        ([node(16), node(16)], {"count": 1, "cpus": 32}, "no node has 32 CPUs for a worker: the largest has 16 CPUs"),
        (
            [node(8, 2)],
            {"count": 3, "gpus": 0.6},
            "3 workers of no CPU and 0.6 GPU do not fit: the nodes have room for 2",
        ),
        ([], {"cpus": 1}, "no node has 1 CPU for a worker: the largest has no CPU and no GPU"),
        ([{"memory": 1e9}], {"share": True}, "no node has 1 CPU for a worker: the largest has no CPU and no GPU"),
    ],
)
def test_what_fits_no_node_is_said_in_one_line_that_names_what_the_largest_has(nodes, asked, message):
    with pytest.raises(NoRoom) as raised:
        divide(nodes, Processes("worker", **asked))
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"cpus": 0.0}, "with --cpus-per-actor 0 that is no number: give --actors"),
        ({"cpus": -1.0}, "--cpus-per-actor must be 0 or more, not -1"),
        ({"cpus": math.nan}, "--cpus-per-actor must be 0 or more, not nan"),
        ({"count": -1}, "--actors must be 0 or more, not -1"),
        ({"gpus": 1.5}, "--gpus-per-actor 1.5: give a fraction below 1, or whole GPUs"),
    ],
)
def test_what_no_node_could_ever_give_is_no_matter_of_nodes(asked, message):
    """To wait for a node, as NoRoom lets callers do, would be in vain."""
    with pytest.raises(UserError, match=message) as raised:
        divide([node(2, 2)], Processes("actor", **asked))
    assert not isinstance(raised.value, NoRoom)


@pytest.mark.parametrize(
    ("budget", "nodes", "shares"),
    [
        ({}, [node(2)], (2, Share(1, 1))),
        ({"concurrent": 1}, [node(16)], (1, Share(1, 16))),
        ({"concurrent": 4}, [node(2)], (4, Share(1, 1))),
        ({"workers": 4}, [node(16)], (4, Share(4, 1))),
        ({"gpus_per_worker": 1.0}, [node(64, 8)], (8, Share(1, 8))),
        ({"gpus_per_worker": 0.5, "workers": 2}, [node(64, 8)], (8, Share(2, 4))),
        ({"gpus_per_worker": 1.0}, CLUSTER, (1, Share(1, 8))),
        ({"concurrent": 1}, CLUSTER, (1, Share(1, 16))),
        ({"concurrent": 3}, CLUSTER, (3, Share(1, 8))),
        ({}, CLUSTER, (40, Share(1, 1))),
    ],
)
def test_how_nodes_are_shared_among_trainings(tmp_path, budget, nodes, shares):
    assert training_shares(StudyBudget(out=tmp_path, **budget), nodes) == shares


def test_trainings_side_by_side_of_which_not_one_fits_are_refused():
    """Each asked for 4 workers of half a CPU, all of the machine: decoding then waited for a CPU for ever."""
    with pytest.raises(NoRoom, match="4 workers of 1 CPU do not fit: the nodes have room"):
        divide_groups([node(2)], Processes("worker", 4, share=True), 0)


@pytest.mark.parametrize(
    ("fleet", "nodes", "count"),
    [
        ({}, CLUSTER, 40),
        ({"cpus_per_actor": 6}, CLUSTER, 5),
        ({"gpus_per_actor": 0.25}, CLUSTER, 4),
        ({"cpus_per_actor": 0, "gpus_per_actor": 0.5}, CLUSTER, 2),
        ({"actors": 100}, [node(2)], 100),
        ({"actors": 3, "cpus_per_actor": 0}, [node(2)], 3),
    ],
)
def test_as_many_simulators_as_fit_node_by_node(fleet, nodes, count):
    """By the sum of all CPUs, six a simulator, the four nodes would get one more than they hold, which only waits."""
    assert count_actors(FleetConfig(**fleet), nodes) == count


def test_replicas_that_take_every_cpu_leave_no_simulator_waiting_for_ever():
    one = Processes("replica", 1, 1.0)
    assert count_actors(FleetConfig(), [node(2)], [one]) == 1
    with pytest.raises(NoRoom, match="the policy's replicas leave no room for an actor; lower --replicas"):
        count_actors(FleetConfig(), [node(2)], [Processes("replica", 2, 1.0)])


def test_replicas_stand_on_gpu_nodes_only_for_gpus():
    assert without(CLUSTER, Processes("replica", 1, 4.0, 1.0))[3] == {"CPU": 4, "GPU": 0, "memory": 1e9}
    assert without(CLUSTER, Processes("replica", 1, 4.0))[3]["CPU"] == 8
