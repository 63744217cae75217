import numpy as np
import pytest

from vlaad_ray.envs import libero
from vlaad_ray.envs.libero_suites import BUDGETS as SUITES
from vlaad_ray.semantics import directions
from vlaad_ray.semantics.directions import Displacement, Subtask, words


@pytest.mark.parametrize(
    ("xyz", "expected"),
    [
        ((0.2, 0.01, 0.0), "moving forward"),
        ((-0.2, 0.0, 0.0), "moving backward"),
        ((0.01, 0.2, -0.15), "moving left and down"),
        ((0.0, -0.15, 0.2), "moving up and right"),
        ((0.002, 0.002, 0.0), "staying still"),
    ],
)
def test_words_name_the_dominating_axes_largest_first(xyz, expected):
    assert words(Displacement(xyz)) == expected


def test_words_and_signs_are_inverse_on_every_direction():
    """An audit compares words with kinematics: a swapped axis or sign would turn truth into contradiction."""
    for xyz in np.random.default_rng(0).normal(0, 0.1, (200, 3)):
        signs = directions.axis_signs(words(Displacement(tuple(xyz))))
        claimed = signs != 0
        assert claimed.any()
        assert (np.sign(xyz)[claimed] == signs[claimed]).all()


def test_signs_of_foreign_text():
    assert directions.axis_signs("The arm moves LEFT, then down.").tolist() == [0, 1, -1]
    assert directions.axis_signs("left and right").tolist() == [0, 0, 0]
    assert directions.axis_signs("a cupboard").tolist() == [0, 0, 0]


@pytest.mark.parametrize(("yaw", "expected"), [(0.6, "rotating counter-clockwise"), (-0.6, "rotating clockwise")])
def test_a_knob_turned_by_a_downward_hand_has_the_right_sense(yaw, expected):
    """A hand that points down is itself rotated by pi about a horizontal axis, where axis-angles wrap."""
    proprio = np.zeros((2, 8))
    proprio[0, 3:6] = [np.pi, 0, 0]
    proprio[1, 3:6] = np.pi * np.array([np.cos(yaw / 2), np.sin(yaw / 2), 0])  # Rz(yaw) Rx(pi)
    moved = directions.displacement(proprio, 0, 1)
    assert moved.yaw == pytest.approx(yaw)
    assert words(moved) == expected


def test_a_hand_at_rest_tells_of_its_fingers():
    assert words(Displacement((0, 0, 0), width=-0.03)) == "closing the gripper"
    assert words(Displacement((0, 0, 0), width=0.03)) == "opening the gripper"


def test_a_long_segment_is_told_in_windows():
    """Going there and back in one phase is not "staying still"."""
    proprio = np.zeros((80, 8))
    proprio[:, 0] = np.concatenate([np.linspace(0, 0.4, 40), np.linspace(0.4, 0, 40)])
    texts = directions.directions(np.zeros(80, np.int32), proprio)
    assert len(texts) == 80
    assert (texts[0], texts[-1]) == ("moving forward", "moving backward")


@pytest.mark.parametrize("suite", SUITES)
def test_every_libero_instruction_is_understood(suite):
    """Vague descriptions would teach the student nothing; 'it' would teach it nonsense."""
    for task in libero.load_benchmark(suite).tasks:
        for subtask in directions.parse(task.language):
            assert subtask != directions.UNKNOWN
            for phrase in filter(None, (subtask.thing, subtask.target)):
                assert phrase.startswith(("the ", "a ")), (task.language, subtask)
                assert phrase.removeprefix("the ") in task.language or " or " in phrase or phrase.startswith("a ")


@pytest.mark.parametrize(
    ("instruction", "expected"),
    [
        (
            "pick up the black bowl between the plate and the ramekin and place it on the plate",
            [Subtask("carry", "place", "the black bowl", "the plate")],
        ),
        (
            "open the top drawer and put the bowl inside",
            [
                Subtask("operate", "open", "the top drawer", ""),
                Subtask("carry", "put", "the bowl", "the top drawer"),
            ],
        ),
        (
            "put the yellow and white mug in the microwave and close it",
            [
                Subtask("carry", "put", "the yellow and white mug", "the microwave"),
                Subtask("operate", "close", "the microwave", ""),
            ],
        ),
        (
            "put both the alphabet soup and the tomato sauce in the basket",
            [Subtask("carry", "put", "the alphabet soup or the tomato sauce", "the basket")],
        ),
        ("dance", [directions.UNKNOWN]),
    ],
)
def test_instructions_become_subtasks(instruction, expected):
    assert list(directions.parse(instruction)) == expected


def test_each_frame_is_told_with_its_own_subtask():
    """'put … and close it': the carry must not be described as closing, nor the push as carrying."""
    nine = ["approaching", "grasping", "transporting", "placing", "approaching", "operating", "completed"]
    told = directions.subtasks_by_frame(nine, "put the black bowl in the bottom drawer of the cabinet and close it")
    assert [subtask.verb for subtask in told] == ["put"] * 4 + ["close"] * 3


def test_an_approach_that_leads_nowhere_belongs_to_what_is_left_to_do():
    told = directions.subtasks_by_frame(["placing", "approaching"], "put the mug on the plate and close the drawer")
    assert [subtask.verb for subtask in told] == ["put", "close"]


def test_descriptions():
    soup = Subtask("carry", "place", "the alphabet soup", "the basket")
    stove = Subtask("operate", "turn on", "the stove", "")
    assert (
        directions.describe("transporting", "moving right and up", soup)
        == "transporting: carrying the alphabet soup, moving right and up toward the basket"
    )
    assert (
        directions.describe("operating", "rotating clockwise", stove)
        == "operating: turning on the stove, rotating clockwise"
    )
