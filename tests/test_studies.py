"""Studies: figures by hand, tables of what was measured alone, one study on real episodes, cut off and resumed."""

import dataclasses
import json
import math
from pathlib import Path

import pytest

from vlaad_ray import store
from vlaad_ray.configs import (
    StudyAlphaConfig,
    StudyBudget,
    StudyDistillationConfig,
    StudyFlopsConfig,
    StudyNoiseConfig,
    StudyPhasesConfig,
    UserError,
    parse_range,
)
from vlaad_ray.experiments import markdown
from vlaad_ray.experiments.studies import alpha, budget, closed_loop, distillation, noise, phases
from vlaad_ray.experiments.studies.closed_loop import SeededOutcome
from vlaad_ray.experiments.studies.pages import plain_settings, span
from vlaad_ray.experiments.studies.workshop import Workshop
from vlaad_ray.stats import paired_ratio, ratio_interval

ALL_STUDIES = [StudyPhasesConfig, StudyNoiseConfig, StudyAlphaConfig, StudyDistillationConfig, StudyFlopsConfig]


def outcome(
    init: int, ever: bool = True, task: int = 0, flips: int = 2, meant: int = 2, seed: int = 0
) -> SeededOutcome:
    metrics = {"gripper_flips": flips, "gripper_flips_meant": meant, "last_phase": "approaching"}
    start = ("libero_object", task, f"s{init:04d}", "pick up the milk")
    return SeededOutcome(*start, ever, ever, 100, 120, metrics, seed)


def test_coefficient_of_variation_by_hand():
    """Counts 2, 4, 6: mean 4, variance (4 + 0 + 4) / 3. The sample's standard deviation would give 0.5."""
    assert phases.coefficient_of_variation([2, 4, 6]) == pytest.approx(math.sqrt(8 / 3) / 4)
    assert phases.coefficient_of_variation([5, 5]) == 0
    assert phases.coefficient_of_variation([9, 0, 0]) == pytest.approx(math.sqrt(2)), "a phase that never occurs counts"


def test_ratio_of_paired_rates():
    """Both 1, only the first 1, only the second 7, neither 12 (Bentur et al. 2009), by the formula."""
    a = {i: i < 2 for i in range(21)}
    b = {i: i in (0, *range(2, 9)) for i in range(21)}
    found = paired_ratio(a, b)
    assert found["ratio"] == 2 / 8
    assert found["interval95"] == pytest.approx([0.0677, 0.9227], abs=1e-4)
    backwards = paired_ratio(b, a)["interval95"]
    assert backwards == pytest.approx([1 / 0.9227, 1 / 0.0677], rel=2e-3)
    same = {i: True for i in range(200)}
    low, high = paired_ratio(same, same)["interval95"]
    assert low < 0.995 < 1 < high, "no discordant pair is no proof of equality"
    assert paired_ratio(same, {i: False for i in range(200)})["ratio"] is None


def test_interval_of_flips_takes_episodes_as_draws():
    assert ratio_interval([1, 1, 1], [10, 10, 10]) == (0.1, 0.1)
    low, high = ratio_interval([0, 3], [10, 10])
    assert low == 0 and high == pytest.approx(0.15 + 1.96 * math.sqrt(2 * (1.5**2) * 2) / 20)
    assert ratio_interval([1], [10]) is None


def test_flips_that_are_taken_back_are_told_from_those_that_the_task_needs():
    measured = closed_loop.rates([outcome(20, flips=10, meant=2), outcome(21, flips=4, meant=4)])
    assert measured["flips_per_240"]["rate"] == 240 * 14 / 240
    assert measured["taken_back_per_240"]["rate"] == 240 * 8 / 240
    assert measured["needless_per_240"]["rate"] == 240 * (8 + 2) / 240, "a second grasp is needless, if meant"


def test_students_of_all_seeds_meet_the_one_teacher_but_only_their_own_seed_of_bc():
    students = [outcome(20, ever=True, seed=0), outcome(20, ever=False, seed=1)]
    against_teacher = closed_loop.compare(students, [outcome(20, ever=True)], by_seed=False)
    assert (against_teacher.ever.n, against_teacher.ever.only_b) == (2, 1)
    against_bc = closed_loop.compare(students, [outcome(20, ever=False, seed=1)], by_seed=True)
    assert (against_bc.ever.n, against_bc.ever.neither) == (1, 1)
    assert closed_loop.compare(students, [outcome(21)], by_seed=True) is None, "nothing shared, nothing compared"
    assert [(of["seed"], of["n"], of["ever"]) for of in closed_loop.by_seed(students)] == [(0, 1, 1), (1, 1, 0)]


def workshop(tmp_path: Path, **budget: object) -> Workshop:
    return Workshop(StudyBudget(out=tmp_path, **budget))


def test_page_on_phases_has_only_measured_cells_and_quoted_ones(tmp_path):
    counts = {"libero_object, scripted": {3: {"a": 2, "b": 4, "c": 6}, 9: {"a": 3, "b": 3}}}
    accuracy = [
        {"suite": "libero_object", "taxonomy": 9, "seed": seed, "near": near, "exact": 0.4, "frames": 99, "steps": 70}
        for seed, near in enumerate((0.7, 0.8))
    ]
    numbers = {"frames_per_phase": counts, "cv": phases.variations(counts), "accuracy": accuracy}
    page = phases.page(numbers, workshop(tmp_path))
    assert "| 3 | 0.41 (n = 1) | 0.59 |  |  |  |  |" in page, "no student with 3 phases, nothing quoted of it"
    assert "| 9 | 0.00 (n = 1) | 1.00 | 75.0 (70.0–80.0, n = 2) | 40.0 (40.0–40.0, n = 2) | 0.14 | 63.6 |" in page
    phases.plot(numbers)


def test_page_on_noise(tmp_path):
    teachers = {0.03: [outcome(20, flips=20, meant=2), outcome(21, ever=False, flips=20, meant=2)]}
    students = {
        (0.03, "bc", "raw"): [outcome(20, flips=4), outcome(21, ever=False, flips=4)],
        (0.03, "dual_path", "raw"): [outcome(20, flips=3), outcome(21, flips=3)],
    }
    cells = noise.student_cells(students, teachers)
    assert [cell["needless_of_teachers"] for cell in cells] == pytest.approx([2 / 18, 1 / 18])
    assert [cell["flips_of_teachers"] for cell in cells] == pytest.approx([4 / 20, 3 / 20])
    numbers = {
        "suite": "libero_object",
        "teachers": [{"flip_rate": 0.03, **closed_loop.rates(teachers[0.03])}],
        "students": cells,
        "training": [{"flip_rate": 0.03, "objective": "bc", "seed": 0, "near": 0.5, "steps": 10}],
    }
    steady = noise.student_cells({(0.0, "bc", "raw"): [outcome(20, flips=4)]}, {0.0: [outcome(20, flips=2)]})
    assert (steady[0]["flips_of_teachers"], steady[0]["needless_of_teachers"]) == (2, None), "a teacher without any"
    page = noise.page(numbers, workshop(tmp_path))
    success, paired, flips = (line for line in page.splitlines() if "| dual_path |" in line)
    assert success.startswith("| 3 % | dual_path | raw | 2/2 = 100.0 %")
    assert paired == "| 3 % | dual_path | raw | +50.0 points, p = 1 | +50.0 points, p = 1 |"
    assert flips.endswith("| 15 % | 6 % |")
    assert "auxiliary" not in page, "not measured, not listed"
    noise.plot(numbers)


def test_page_on_alpha(tmp_path):
    students = {
        ("libero_object", 0.0): [outcome(20, ever=False)],
        ("libero_object", 1.0): [outcome(20, ever=True)],
    }
    training = [
        {"suite": "libero_object", "alpha": value, "seed": 0, "near": 0.5, "steps": 10} for value in (0.0, 0.3, 1.0)
    ]
    numbers = {"training": training, "students": alpha.cells(students)}
    page = alpha.page(numbers, workshop(tmp_path))
    assert "-100.0 points, p = 1" in page
    assert "| libero_object | 0.3 |  |  |  |" in page, "trained, not yet evaluated"
    assert "| libero_object | 0.3 | 50.0 (n = 1) |  |" in page
    alpha.plot(numbers)


def test_page_on_budgets(tmp_path):
    """An arm meets the one that it is to beat at its own budget, and arms on their own at full depth."""
    record = {"seed": 0, "share": 0.48, "layers": 5.5, "by_phase": {"grasping": 6.0}, "routes": 3}
    record |= {"commonest_frames": 0.75, "p50_ms": 12.34, "p99_ms": 20.0}
    of = {
        budget.Cell(1, 1.0): [outcome(20), outcome(21)],
        budget.Cell(3, 0.5): [outcome(20), outcome(21, ever=False)],
        budget.Cell(3, 0.3): [outcome(20, ever=False), outcome(21, ever=False)],
        budget.Cell(6, 0.5): [outcome(20), outcome(21)],
    }
    cells = budget.cells({cell: [record] for cell in of}, of)
    numbers = {"suite": "libero_object", "cells": cells, "impossible": [0.16], "not_in": [10]}
    page = budget.page(numbers, workshop(tmp_path))
    rows = [line for line in page.splitlines() if line.startswith("| 1 ") or "router" in line or "GateProbe" in line]
    assert rows[0].endswith("|  |"), "the control of all is compared with nothing"
    assert rows[1].endswith("| 1: -50.0 points, p = 1 |")
    assert rows[2].endswith("| 1: -100.0 points, p = 0.5 |")
    assert rows[3].endswith("| 3: +50.0 points, p = 1 |")
    assert "| 50 % | 48.0 % | 5.5 | 12.3 | 20.0 | 3, 75 % |" in page
    assert "no route of this network meets: 16 %" in page and "not asked for: 10 (6 with the authors' gating)" in page
    budget.plot(numbers)


def test_distillation_counts_both_on_the_same_states(tmp_path):
    teacher = {"libero_object": [outcome(20), outcome(21)], "libero_goal": [outcome(20)]}
    student = {"libero_object": [outcome(20), outcome(21, ever=False)]}
    numbers = distillation.measure(teacher, student)
    assert list(numbers["suites"]) == ["libero_object"], "a suite without a student has no row"
    suite = numbers["suites"]["libero_object"]
    assert {who: (suite[who]["n"], suite[who]["k"]) for who in ("teacher", "student")} == {
        "teacher": (2, 2),
        "student": (2, 1),
    }
    assert suite["relative"]["ever"]["change"] == -0.5
    assert suite["tasks"][0]["failed"] == ["s0021 (approaching)"]
    page = distillation.page({**numbers, "training": []}, workshop(tmp_path))
    assert "| all | teacher | 2/2" in page
    assert ": 1/2; 1 approaching" in page
    distillation.plot(numbers)
    nothing = distillation.measure(teacher, {})
    distillation.page({**nothing, "training": []}, workshop(tmp_path))
    distillation.plot(nothing)


def test_a_page_keeps_to_its_columns_and_its_words():
    """Rows of 250 columns and lines of 300 are read by nobody."""
    prose = " ".join(f"word{number}" for number in range(60))
    text = markdown.wrapped(f"# Heading\n\n{prose}\n\n| a table | {prose} |\n\n- {prose}\n\n![picture](x.png)")
    heading, paragraph, table, listed, picture = text.split("\n\n")
    for block in (paragraph, listed):
        assert max(map(len, block.splitlines())) <= markdown.COLUMNS
        assert block.removeprefix("- ").split() == prose.split()
    assert table == f"| a table | {prose} |" and heading == "# Heading" and picture == "![picture](x.png)"


def test_settings_of_a_page_name_no_place():
    """Pages are published: a path of somebody's machine has no place in them."""
    config = StudyNoiseConfig(budget=StudyBudget(out=Path("/here"), results=Path("/there"), epochs=3))
    settings = plain_settings(config)
    assert "/here" not in str(settings) and "/there" not in str(settings)
    assert (settings["epochs"], settings["noise.burst_rate"], settings["flip_rates"]) == (3, 0.02, (0.0, 0.03, 0.1))
    assert span([0.7, 0.8], 100) == "75.0 (70.0–80.0, n = 2)"


def test_an_objective_that_cannot_be_trained_with_is_said_before_hours_of_collecting(tmp_path):
    with pytest.raises(UserError, match="unknown objective 'clever'"):
        noise.study(StudyNoiseConfig(budget=StudyBudget(out=tmp_path), objectives=("bc", "clever")))
    with pytest.raises(UserError, match="unknown objective 'clever'"):
        distillation.study(StudyDistillationConfig(budget=StudyBudget(out=tmp_path), objectives=("clever",)))
    assert not list(tmp_path.iterdir())


def test_an_objective_holds_for_all_suites_or_each_has_its_own():
    suites = ("libero_object", "libero_goal")
    assert distillation.of_suites(suites, ("bc",)) == dict.fromkeys(suites, "bc")
    assert distillation.of_suites(suites, ("bc", "both")) == {"libero_object": "bc", "libero_goal": "both"}
    with pytest.raises(UserError, match="one for each of the 2 suites, not 3"):
        distillation.of_suites(suites, ("bc", "both", "bc"))


def test_a_setting_that_is_the_default_makes_no_other_student(tmp_path, monkeypatch):
    """The student with alpha 1 of one study is the student of the others."""
    made = workshop(tmp_path)
    monkeypatch.setattr(Workshop, "annotations", lambda *_: (tmp_path / "labels", {}))
    plain, given, other = (
        made.training(Path("data"), 0, "dual_path", **settings) for settings in ({}, {"alpha": 1.0}, {"alpha": 0.5})
    )
    assert plain == given
    assert "alpha0.5" in other.out.name and other.out != plain.out


@pytest.mark.parametrize(
    ("objective", "settings", "ending"),
    [
        ("bc", {}, "-seed1-0b53263e"),
        ("dual_path", {}, "-seed1-fe0427e9"),
        ("dual_path", {"alpha": 0.5}, "-alpha0.5-seed1-439c14ba"),
        ("auxiliary", {}, "-seed1-8207623a"),
        ("both", {"alpha": 1.0}, "-seed1-f271ffa9"),
    ],
)
def test_students_are_called_as_before_objectives_had_settings_of_their_own(
    tmp_path, monkeypatch, objective, settings, ending
):
    """With other names, hours of training would be repeated."""
    monkeypatch.setattr(Workshop, "annotations", lambda *_: (tmp_path / "labels", {}))
    monkeypatch.setattr("vlaad_ray.experiments.studies.workshop.rules_hash", lambda: "f8215e88")
    found = workshop(tmp_path).training(Path("data"), 1, objective, **settings)
    assert found.out.name.endswith(ending)


@pytest.mark.slow
def test_a_study_runs_is_cut_off_and_goes_on(ray_local, tmp_path):
    """On real LIBERO: first no time for any training, then the rest; the third time nothing is left to do."""
    budget = StudyBudget(
        out=tmp_path / "work",
        tasks="0",
        init_states="0-1",
        placements=0,
        image_every=8,
        seeds="0",
        student_pixels=32,
        validation_fraction=0.5,
        epochs=1,
        workers=1,
        minutes=0.0,
    )
    config = StudyPhasesConfig(budget=budget, suites=("libero_object",), flip_rates=(0.0,), taxonomies=(3,))
    page = phases.study(config)
    assert "Not run, for lack of time" in page.read_text()
    assert not (tmp_path / "work" / "data").exists(), "out of time before the first episode"
    page = phases.study(dataclasses.replace(config, budget=dataclasses.replace(budget, minutes=None)))
    numbers = json.loads(page.with_suffix(".json").read_text())
    assert numbers["not_run"] == []
    assert (numbers["accuracy"][0]["taxonomy"], numbers["accuracy"][0]["seed"]) == (3, 0)
    (counts,) = numbers["frames_per_phase"].values()
    frames = sum(len(store.read_episode(path, images=False)) for path in (tmp_path / "work").glob("data/*/episodes/*"))
    assert sum(counts["3"].values()) == frames
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").glob("[!r]*/*/*") if path.is_file()}
    phases.study(config)
    assert {path: path.stat().st_mtime_ns for path in made} == made
    assert json.loads(page.with_suffix(".json").read_text())["accuracy"] == numbers["accuracy"]

    # Another study, of the same data: two students side by side, each evaluated.
    small = dataclasses.replace(budget, minutes=None, eval_init_states="20")
    page = alpha.study(StudyAlphaConfig(budget=small, suites=("libero_object",), alphas=(0.5, 1.0)))
    students = json.loads(page.with_suffix(".json").read_text())["students"]
    assert [(cell["alpha"], [(each["seed"], each["n"]) for each in cell["seeds"]]) for cell in students] == [
        (0.5, [(0, 1)]),
        (1.0, [(0, 1)]),
    ]
    assert len(list((tmp_path / "work" / "data").iterdir())) == 1


@pytest.mark.parametrize("config", ALL_STUDIES)
def test_no_study_trains_on_states_that_it_tests_on(config):
    budget = config().budget
    learnt, tested = (set(parse_range(text)) for text in (budget.init_states, budget.eval_init_states))
    assert len(tested) == 20 and not learnt & tested
