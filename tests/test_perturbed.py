"""vlaad eval --perturb: a suite and its variants, each an evaluation, and the table of them all."""

from dataclasses import replace

import pytest

from vlaad_ray import store
from vlaad_ray.configs import EnvConfig, EvalConfig, FleetConfig
from vlaad_ray.envs import find_suite
from vlaad_ray.evaluate.perturbed import against_parent, evaluate_family, family, part, show_family, why_left_out
from vlaad_ray.main import main, parse
from vlaad_ray.models.student.checkpoint import save_pretrained
from vlaad_ray.models.student.small import SmallConfig, SmallStudent
from vlaad_ray.models.student.text import train_tokenizer
from vlaad_ray.types import Outcome

SMALL = {"suite": "libero_goal", "env": EnvConfig(image_size=32), "fleet": FleetConfig(actors=1), "videos": 0}
STOVE = 7


def outcome(suite, task, init, ever):
    return Outcome(suite, task, init, "", ever, ever, 100, 100)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """An untrained student of the parent suite."""
    directory = tmp_path_factory.mktemp("student")
    tokenizer = train_tokenizer(("turn on the stove",), 16)
    student = SmallStudent(
        SmallConfig(image_size=32, width=8, hidden=32, vocabulary=tokenizer.vocabulary, text_length=16)
    )
    save_pretrained(directory, student, tokenizer, {"render": "fast", "init_states": {"libero_goal": {"7": ["s0000"]}}})
    return directory


def test_teacher_and_student_on_two_variants_resumed_and_side_by_side(ray_local, tmp_path, checkpoint):
    config = EvalConfig(
        "scripted", tmp_path / "teacher", tasks=str(STOVE), init_states="9,20", perturb="lan,with_milk", **SMALL
    )
    summary = evaluate_family(config)
    suites = summary["suites"]
    assert list(suites) == ["libero_goal", "libero_goal_lan", "libero_goal_with_milk"]
    assert [row["success"].ever.n for row in suites.values()] == [2, 2, 1], "with_milk has 10 init states"
    assert all(row["success"].ever.rate == 1 for row in suites.values())
    assert [suites[suite]["against_parent"].ever.both for suite in list(suites)[1:]] == [2, 1]
    (told,) = {each.instruction for each in store.read_evaluation(config.out / "libero_goal_lan").values()}
    assert told != find_suite("libero_goal").tasks()[STOVE]

    written = {path: path.stat().st_mtime_ns for path in config.out.glob("*/outcomes/*.json")}
    assert len(written) == 5
    assert evaluate_family(config)["suites"] == suites
    stored = store.read_json(config.out / "perturbed.json")["suites"]
    assert "against_parent" not in stored["libero_goal"] and "baseline" not in stored["libero_goal_lan"]
    assert stored["libero_goal_lan"]["against_parent"].keys() == {"ever", "final"}
    assert stored["libero_goal_lan"]["against_parent"]["ever"]["both"] == 2
    assert {path: path.stat().st_mtime_ns for path in config.out.glob("*/outcomes/*.json")} == written

    student = replace(
        config, policy=str(checkpoint), out=tmp_path / "student", budget=3, perturb="lan", compare_to=config.out
    )
    beside = evaluate_family(student)
    for suite, row in beside["suites"].items():
        assert row["baseline"] == {"policy": "scripted", "success": suites[suite]["success"]}
        assert row["paired"].ever.only_b == row["success"].ever.n
        assert row["warnings"] == (), "variants of the suite that it was trained on are no mistake"
    table = show_family(beside)
    assert [column.header for column in table.columns][-2:] == ["scripted, ever", "against that"]
    assert table.row_count == 2


def test_a_variant_runs_the_parents_tasks_and_the_states_that_it_has(tmp_path):
    """By number, `--tasks 7` would be another task where the files are called otherwise."""
    config = EvalConfig("scripted", tmp_path, tasks="3,7", init_states="20-39", perturb="all", **SMALL)
    milk = part(config, "libero_goal_with_milk")
    told = [find_suite("libero_goal_with_milk").tasks()[int(task)] for task in milk.tasks.split(",")]
    assert told == ["open the top layer of the drawer and put the bowl inside", "turn on the stove"]
    assert milk.init_states == "0,1,2,3,4,5,6,7,8,9"
    assert part(config, "libero_goal_task").tasks == "3,7", "new tasks, in these tasks' scenes"
    same = part(config, "libero_goal_swap")
    assert (same.tasks, same.init_states, same.perturb, same.out) == ("3,7", "20-39", "", tmp_path / "libero_goal_swap")
    # Two of its tasks have no init states at all, and two suites have two tasks only.
    ten = EvalConfig("scripted", tmp_path, suite="libero_10")
    assert len(part(ten, "libero_10_with_milk").tasks.split(",")) == 8
    few = EvalConfig("scripted", tmp_path, suite="libero_object", tasks="5")
    assert part(few, "libero_object_two_normal_episodes").tasks == ""


def test_variants_that_cannot_be_run_are_left_out_with_the_reason(tmp_path):
    """They would stop a family after hours, half-way."""
    config = EvalConfig("scripted", tmp_path, suite="libero_object")
    assert part(config, "libero_object_with_red_stick").tasks == ""
    assert part(config, "libero_object_triggered_episode").tasks == "1,2,3,4,5,6,7,8,9,10"
    why = why_left_out(config, find_suite("libero_object_with_red_stick"))
    assert why == "the installed LIBERO lacks red_sticker.xml"


def test_pairs_are_of_one_task_and_each_start_of_the_parent_counts_once():
    suite = find_suite("libero_goal_with_blue_stick")
    parents = [outcome("libero_goal", 3, "s0000", True), outcome("libero_goal", 1, "s0000", False)]
    own = [outcome("libero_goal_with_blue_stick", 1, init, False) for init in ("s0000", "s0001")]
    pairs = against_parent(suite, own, parents)
    assert pairs is not None
    assert (pairs.ever.n, pairs.ever.only_b) == (1, 1), "its task 1 is the parent's task 3"
    assert against_parent(find_suite("libero_goal_task"), own, parents) is None, "tasks that the parent has not"


def test_families_are_chosen_by_name():
    assert family("libero_goal", "swap, lan") == ["libero_goal", "libero_goal_lan", "libero_goal_swap"]
    assert len(family("libero_object", "all")) == 16


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--perturb", "lan,swop"],
            "error: --perturb: libero_goal has no variant 'swop'; choose from all, lan, object, ",
        ),
        (
            ["--suite", "libero_90", "--perturb", "all"],
            "error: --perturb: libero_90 has no variants; choose --suite from ",
        ),
        (["--perturb", "lan", "--tasks", "12"], "error: libero_goal has no task 12; choose from 0-9"),
        (["--perturb", "lan", "--compare-to", "nowhere"], "error: nowhere holds no evaluation; run jobs/eval.py"),
    ],
)
def test_what_cannot_be_perturbed_is_one_line_and_writes_nothing(tmp_path, capsys, words, message):
    with pytest.raises(SystemExit):
        main("eval", ["--policy", "scripted", "--out", str(tmp_path / "out"), "--suite", "libero_goal", *words])
    assert capsys.readouterr().err.startswith(message)
    assert not (tmp_path / "out").exists()


def test_a_pipeline_has_no_families():
    """Its two evaluations would leave the flag unheard."""
    with pytest.raises(SystemExit):
        parse("pipeline", ["--out", "runs/x", "--eval.perturb", "lan"])


def test_a_teachers_statistics_are_those_of_the_suite_it_was_trained_on(openvla_checkpoint):
    """OpenVLA's checkpoints know libero_goal, and none of its variants."""
    from vlaad_ray.configs import OpenVlaConfig
    from vlaad_ray.teachers import find_teacher

    teacher = find_teacher("openvla", OpenVlaConfig(openvla_checkpoint), "libero_goal_swap", 0)
    assert "libero_goal" in teacher.load.args
