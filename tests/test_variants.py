"""LIBERO's perturbed suites: which there are, what a policy is told in them, which of the parent's tasks they are."""

import contextlib
import io

import pytest

from vlaad_ray.configs import EnvConfig, UserError
from vlaad_ray.envs import SUITES, libero
from vlaad_ray.envs.libero_suites import BUDGETS, VARIANTS, parent_of

NAMES = [f"{parent}_{variant}" for parent, variants in VARIANTS.items() for variant in variants.split()]


def has_init_states(suite: str) -> bool:
    with contextlib.redirect_stdout(io.StringIO()):
        benchmark = libero.load_benchmark(suite)
    try:
        return any(len(benchmark.get_task_init_states(task)) for task in range(benchmark.n_tasks))
    except FileNotFoundError:
        return False


def test_the_suites_are_those_of_the_installed_benchmark_that_can_be_evaluated():
    """A suite that the distribution has and we forgot would not be missed by anybody."""
    installed = libero.import_libero().benchmark.get_benchmark_dict()
    assert len(installed) == 83
    with_states = {suite for suite in installed if has_init_states(suite)}
    assert set(BUDGETS) | set(NAMES) == with_states - {"libero_mine", "libero_study_table"}
    assert set(NAMES) < set(SUITES)


def test_what_the_installed_benchmark_lacks_is_known_before_a_simulator_starts():
    """An evaluation of twenty of these suites ended in a page about a file of the benchmark's."""
    whole = {name for name in NAMES if all(SUITES[name].missing(task) is None for task in range(2))}
    none = {name for name in set(NAMES) - whole if SUITES[name].missing(1) is not None}
    assert len(none) == 20 and all("_with_" in name for name in none)
    assert {name.removeprefix("libero_object_") for name in set(NAMES) - whole - none} == {
        "matched_two_episodes",
        "not_matched_two_episodes",
        "triggered_episode",
    }
    message = "libero_goal_with_red_stick task 3 cannot be run here: the installed LIBERO lacks red_sticker.xml; choose"
    with pytest.raises(UserError, match=message):
        libero.LiberoEnv("libero_goal_with_red_stick", 3, EnvConfig())


@pytest.mark.parametrize("suite", ["libero_goal_lan", "libero_goal_task"])
def test_a_reworded_variant_is_told_in_its_own_words(suite):
    """By its file's name it would be told libero_goal's: no perturbation in one, an impossible task in the other."""
    assert not set(libero.instructions(suite)) & set(libero.instructions("libero_goal"))
    assert {
        "libero_goal_lan": "place the bowl on the stove",
        "libero_goal_task": "put the plate on the stove",
    }[suite] == libero.instructions(suite)[1]


def test_others_are_told_what_students_of_the_parent_know():
    for variant in ("swap", "object", "with_mug"):
        assert set(libero.instructions(f"libero_goal_{variant}")) == set(libero.instructions("libero_goal"))


@pytest.mark.parametrize("suite", NAMES)
def test_every_task_of_a_variant_is_one_of_the_parents_unless_it_is_a_new_one(suite):
    """Numbers differ where files are called otherwise: paired by them, other tasks would be compared."""
    parent = parent_of(suite)
    assert parent is not None
    found = [libero.parents_task(suite, task) for task in range(len(libero.instructions(suite)))]
    if suite.endswith("_task"):
        assert None in found or suite == "libero_object_task"  # each asks there for what another task asks for
    else:
        assert None not in found
    if suite.endswith(("_lan", "_object", "_swap")):
        assert found == list(range(10))


def test_a_task_is_found_by_its_words_not_by_its_number():
    suite = "libero_goal_with_blue_stick"
    assert libero.instructions(suite)[1] == "open the top layer of the drawer and put the bowl inside"
    assert libero.instructions("libero_goal")[3] == "open the top drawer and put the bowl inside"
    assert libero.parents_task(suite, 1) == 3
    assert libero.parents_task("libero_goal", 3) is None
