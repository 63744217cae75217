"""What a VLM is asked, what counts as an answer, and what the audit makes of it. Pure functions: no Ray, no engine."""

import json

import numpy as np
import pytest

from vlaad_ray.annotate import check, kinds, prompts, windows
from vlaad_ray.annotate.kinds.kind import Evidence, Question, Scene
from vlaad_ray.annotate.prompts import Answer, MalformedAnswer
from vlaad_ray.annotate.windows import Window
from vlaad_ray.configs import VlmConfig
from vlaad_ray.experiments.bench import liar
from vlaad_ray.semantics import directions, phases
from vlaad_ray.semantics.directions import Displacement, Subtask
from vlaad_ray.summaries import Steadiness

DRAWER = "open the middle drawer of the cabinet"
SUBTASK = Subtask("operate", "open", "the middle drawer", "")
FRAMES = pytest.mark.parametrize("frame", ["viewer", "base"])


def path(*points, steps=20):
    """Proprioception of a hand that goes straight from point to point, `steps` frames each."""
    corners = np.array(points, float)
    times = np.arange((len(corners) - 1) * steps + 1)
    proprio = np.zeros((len(times), 8), np.float32)
    for axis in range(3):
        proprio[:, axis] = np.interp(times, np.arange(len(corners)) * steps, corners[:, axis])
    return proprio


def planned_windows(labels, proprio, pictures, every, moving):
    return kinds.plan(Scene(labels, labels, proprio, pictures), VlmConfig(every=every, moving=moving))


def test_windows_cover_every_frame_once_by_segment_and_by_interval():
    labels = ("approaching",) * 20 + ("operating",) * 15 + ("completed",) * 6
    proprio = path((0, 0, 0), (0.2, 0, 0), (0.2, 0, 0.1), steps=20)
    pictures = range(0, 41, 2)
    for every in (0, 1, 7):
        planned = planned_windows(labels, proprio, pictures, every, moving=False)
        described = [t for window in planned if window.kind == "describe" for t in range(window.first, window.last)]
        assert described == list(range(41))
        assert all(len({labels[t] for t in range(window.first, window.last)}) == 1 for window in planned)
        assert [(w.first, w.last) for w in planned if w.kind == "direct"] == [(20, 35)]
    (direct,) = [w for w in planned_windows(labels, proprio, pictures, 0, moving=False) if w.kind == "direct"]
    assert direct.frames == (20, 24, 28, 30, 34)
    moving = planned_windows(labels, proprio, pictures, 0, moving=True)
    assert [w.first for w in moving if w.kind == "direct"] == [0, 20, 35]


def test_only_readable_pictures_are_shown_and_without_any_nothing_can_be():
    labels = ("approaching",) * 10
    (window,) = planned_windows(labels, path((0, 0, 0), (0, 0, 0), steps=9), [2, 9], 0, moving=False)
    assert window.frames == (9,)
    (window,) = planned_windows(labels, path((0, 0, 0), (0, 0, 0), steps=9), [], 0, moving=False)
    assert window.frames == ()


@FRAMES
def test_words_of_either_frame_mean_the_same_motion(frame):
    for words in (w for w in prompts.direction_words("base")):
        assert prompts.to_base(prompts.from_base(words, frame), frame) == words
    assert prompts.from_base("moving forward and left", "viewer") == "moving nearer and right"


def test_every_phase_of_every_taxonomy_has_a_definition_and_words_of_its_own():
    for taxonomy in (3, 5, 7, 9, 11, 13):
        for phase in phases.names(taxonomy):
            assert prompts.texts()["phases"][phase]["definition"] and prompts.verbs(phase)


@FRAMES
@pytest.mark.parametrize("kind", ["describe", "direct"])
def test_a_prompt_holds_task_phase_pictures_and_what_may_be_answered(kind, frame):
    window = Window(kind, 0, 9, "operating", (0, 2, 4, 6, 8) if kind == "direct" else (4,))
    system, user = kinds.messages(window, DRAWER, ["data:x"] * len(window.frames), frame)
    text = user["content"][-1]["text"]
    assert "{" not in text.replace('{"', "") and DRAWER in text and "operating" in text and "the middle drawer" in text
    assert [part["type"] for part in user["content"]] == ["image_url"] * len(window.frames) + ["text"]
    assert system["role"] == "system"


@pytest.mark.parametrize(
    ("text", "kind", "reason"),
    [
        ('{"description": "pulling the dra', "describe", "not JSON"),
        ('["pulling the drawer"]', "describe", "wrong fields"),
        ('{"description": "pulling the drawer", "more": 1}', "describe", "wrong fields"),
        ('{"description": 3}', "describe", "description is not text"),
        ('{"description": "dancing with the drawer"}', "describe", "description outside the vocabulary"),
        ('{"description": "pulling\\n\\u0000"}', "describe", "description outside the vocabulary"),
        ('{"element": "the drawer", "direction": "moving sideways"}', "direct", "direction outside the vocabulary"),
        ('{"element": "the drawer"}', "direct", "wrong fields"),
    ],
)
def test_a_malformed_answer_is_refused_with_its_reason(text, kind, reason):
    with pytest.raises(MalformedAnswer, match=f"^{reason}$"):
        kinds.parse(text, None, kind, "viewer")


def test_a_cut_off_answer_is_refused_even_if_it_parses():
    with pytest.raises(MalformedAnswer, match="cut off"):
        kinds.parse('{"description": "pulling the drawer"}', "length", "describe", "viewer")


@pytest.mark.parametrize(
    ("direction", "xyz", "verdict"),
    [
        ("moving left", (0.0, 0.1, 0.0), "agree"),
        ("moving left", (0.1, 0.09, 0.0), "agree"),
        ("moving left and up", (0.0, 0.1, 0.05), "agree"),
        ("moving right", (0.0, 0.1, 0.0), "contradict"),
        ("moving right and up", (0.0, 0.1, 0.08), "contradict"),
        ("moving up", (0.0, 0.1, 0.001), "contradict"),
        ("moving up", (0.0, 0.1, 0.03), "contradict"),
        ("moving left and up", (0.0, 0.1, 0.002), "contradict"),
        ("moving left and up", (0.0, 0.1, 0.02), "undecidable"),
        ("moving left", (0.0, 0.007, 0.0), "undecidable"),
        ("moving left", (0.0, 0.002, 0.0), "contradict"),
        ("staying still", (0.0, 0.004, 0.0), "agree"),
        ("staying still", (0.0, 0.02, 0.0), "undecidable"),
        ("staying still", (0.0, 0.2, 0.0), "contradict"),
    ],
)
def test_a_direction_is_held_against_the_displacement(direction, xyz, verdict):
    assert check.judge_direction(direction, Displacement(xyz))[0] == verdict


@pytest.mark.parametrize(
    ("direction", "yaw", "width", "verdict"),
    [
        ("rotating clockwise", -0.5, 0.0, "agree"),
        ("rotating clockwise", 0.5, 0.0, "contradict"),
        ("rotating counter-clockwise", 0.1, 0.0, "undecidable"),
        ("opening the gripper", 0.0, 0.06, "agree"),
        ("closing the gripper", 0.0, 0.06, "contradict"),
    ],
)
def test_turns_and_fingers_are_held_against_theirs(direction, yaw, width, verdict):
    assert check.judge_direction(direction, Displacement((0, 0, 0), yaw, width))[0] == verdict


@pytest.mark.parametrize(
    ("element", "verdict"),
    [
        ("the middle drawer", "agree"),
        ("drawer", "agree"),
        ("the top drawer", "contradict"),
        ("the stove", "contradict"),
        ("the handle", "undecidable"),
        ("the gripper", "undecidable"),
    ],
)
def test_an_element_is_held_against_the_instruction(element, verdict):
    assert check.judge_element(element, [SUBTASK], DRAWER)[0] == verdict


def test_another_thing_of_the_same_instruction_is_a_wrong_element():
    instruction = "put the white mug on the left plate and put the yellow and white mug on the right plate"
    first, second = directions.parse(instruction)
    assert check.judge_element(first.thing, [first], instruction)[0] == "agree"
    assert check.judge_element(second.thing, [first], instruction)[0] == "contradict"


def test_a_description_is_held_against_its_phase():
    assert check.judge_description("pulling the drawer open", "operating")[0] == "agree"
    assert check.judge_description("lifting the drawer", "operating")[0] == "contradict"


def test_lies_are_found_and_truth_is_left_alone():
    """Random motions: a threshold that is off, or a sign, lets lies through or raises false alarms."""
    random = np.random.default_rng(0)
    missed, alarms, told = 0, 0, 0
    for _ in range(600):
        proprio = path((0, 0, 0), random.normal(scale=0.1, size=3))
        truth = liar.Truth(Window("direct", 0, 20, "operating", (0, 20)), windows.span(proprio, 0, 20), SUBTASK)
        lie = random.choice([None, "opposite", "wrong element"])
        text = json.dumps(liar.tell(truth, lie, "viewer", random))
        answer = kinds.parse(text, None, "direct", "viewer")
        verdict = kinds.judge(truth.window, answer, proprio, [SUBTASK] * 21, DRAWER).verdict
        told += lie is not None
        missed += lie is not None and verdict != "contradict"
        alarms += lie is None and verdict == "contradict"
    assert told > 300
    assert missed <= 0.05 * told
    assert alarms <= 0.02 * (600 - told)


def test_rates_leave_out_what_cannot_be_decided():
    answer = Answer(element="the drawer", direction="moving left")
    row = {"phase": "operating", "suite": "libero_goal", "task": 0, "direction": answer.direction}
    row |= {"episode": "a", "truth": answer.direction}
    rows = [
        {**row, "verdict": verdict, "parts": {"direction": verdict}}
        for verdict in ["agree"] * 6 + ["contradict"] * 2 + ["undecidable"] * 4
    ]
    found = check.summarise(rows)
    assert (found.agree, found.contradict, found.undecidable) == (6, 2, 4)
    assert found.agreement == found.direction_by_axis["left"].agreement == 0.75
    low, high = found.wilson95
    assert low < 0.75 < high


def test_neighbours_are_as_steady_as_kinematics_or_not():
    rows = [
        {"episode": "a", "direction": "moving left", "truth": "moving left"},
        {"episode": "a", "direction": "moving left", "truth": "moving up"},
        {"episode": "b", "direction": "moving up", "truth": "moving left"},
        {"episode": "b", "direction": "moving down", "truth": "moving right"},
        {"episode": "b", "direction": None, "truth": "moving right"},
    ]
    assert check.stability(rows) == Steadiness(neighbours=2, as_steady_as_kinematics=1)


def test_another_kind_of_question_is_one_line(monkeypatch):
    """Asked, worded, constrained, read and judged like those that were there; a branch by name would miss it."""
    count = Question(
        asked=lambda scene, vlm: [Window("count", 0, len(scene.labels), scene.labels[0], (scene.pictures[0],))],
        text=lambda window, instruction, frame: f"How many things does {instruction!r} name?",
        fields=lambda frame: {"number": {"type": "string", "enum": ["one", "two"]}},
        read=lambda said, frame: Answer(description=f"seeing {said['number']} things"),
        judge=lambda window, answer, evidence: {"number": judged(answer, evidence)},
    )

    def judged(answer: Answer, evidence: Evidence):
        right = f"seeing {['one', 'two'][len(prompts.things(evidence.instruction)) - 1]} things"
        return ("agree" if answer.description == right else "contradict"), f"it names {right}"

    monkeypatch.setitem(kinds.QUESTIONS, "count", count)
    labels, proprio = ("approaching",) * 10, path((0, 0, 0), (0.1, 0, 0), steps=9)
    (window,) = [w for w in planned_windows(labels, proprio, [0, 5], 0, moving=False) if w.kind == "count"]
    assert DRAWER in kinds.messages(window, DRAWER, ["data:x"], "viewer")[1]["content"][-1]["text"]
    with pytest.raises(MalformedAnswer, match="number outside the vocabulary"):
        kinds.parse('{"number": "three"}', None, "count", "viewer")
    for said, verdict in (("one", "agree"), ("two", "contradict")):
        answer = kinds.parse(json.dumps({"number": said}), None, "count", "viewer")
        assert kinds.judge(window, answer, proprio, [SUBTASK] * 10, DRAWER).verdict == verdict
