"""Sections about what the policies achieve: headline, success by task and by start, videos."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape

from vlaad_ray import files, store
from vlaad_ray.configs import Location
from vlaad_ray.report import charts, page
from vlaad_ray.report.records import EVALUATIONS, evaluations
from vlaad_ray.stats import format_success
from vlaad_ray.summaries import EvalSummary, TaskSuccesses

PAGE_VIDEO_BYTES = 12_000_000
"""Videos embedded in one page, at most; those beyond are linked."""
VIDEOS_A_GROUP = 6
HELD = ("success", "success after release")


def headline(run: Location) -> str:
    found = evaluations(run)
    title = f"<header><h1>vlaad_ray: {escape(run.resolve().name)}</h1>"
    if "student" not in found:
        return f'{title}<p class="headline">No student has been evaluated yet.</p>{_policies(found)}</header>'
    student = found["student"]
    said = [
        f'<b class="student">Student: {format_success(student.success.ever)}</b> on held-out starts of '
        f"{escape(student.suite)} (init states {escape(str(student.init_states))}, "
        f"{len(student.tasks)} task{'s' if len(student.tasks) > 1 else ''})"
    ]
    if "teacher" in found:
        said.append(f'<b class="teacher">teacher: {format_success(found["teacher"].success.ever)}</b>')
    lines = f'<p class="headline">{"; ".join(said)}.</p>'
    if student.paired is not None:
        pair = student.paired.ever
        lines += (
            f"<p>On the {pair.n} starts that both ran, {pair.both} succeeded for both, {pair.only_a} for the "
            f"student only, {pair.only_b} for the teacher only, {pair.neither} for neither: "
            f"{100 * pair.difference:+.1f} points, exact McNemar p = {pair.mcnemar_p:.3g} (two-sided).</p>"
        )
    warnings = "".join(f'<p class="warning">{escape(text)}</p>' for text in student.warnings)
    return f"{title}{lines}{warnings}{_policies(found)}</header>"


def _policies(found: Mapping[str, EvalSummary]) -> str:
    if not found:
        return ""
    rows = [
        [
            f'<b class="{who}">{who}</b>',
            escape(each.policy),
            format_success(each.success.ever),
            format_success(each.success.final),
            f"{each.steps_mean:.0f} of {each.budget}",
            "no gripper" if each.gripper_flips_per_240 is None else f"{each.gripper_flips_per_240:.1f}",
        ]
        for who, each in found.items()
    ]
    header = ["", "policy", "success", "after release", "mean steps", "gripper flips / 240 steps"]
    note = (
        '<p class="source">k/n = rate [95 % Wilson interval]. Success: the goal was true at some step within the budget'
    )
    note += "; after release: still true once the gripper has let go. From <code>eval_*/summary.json</code>.</p>"
    return page.table(header, rows) + note


def success_by_task(run: Location) -> str:
    title = "Success by task"
    source = "`eval_student/summary.json`, `eval_teacher/summary.json`, written by `jobs/eval.py`. "
    source += "Dot: rate; bar: 95 % Wilson interval; grid lines at 0, 25, 50, 75, 100 %."
    found = evaluations(run)
    if not found:
        return page.section(title, source, page.not_run("jobs/eval.py"))
    tasks = sorted({task for each in found.values() for task in each.tasks}, key=int)
    rows = []
    for task in tasks:
        for row, (who, each) in enumerate(item for item in found.items() if task in item[1].tasks):
            entry = each.tasks[task]
            cells = [f"<b>{task}</b>" if row == 0 else "", f'<span class="{who}">{who}</span>']
            cells += _success_cells(entry, who)
            rows.append([*cells, escape(entry.instruction) if row == 0 else ""])
    header = ["task", "", *(cell for name in HELD for cell in (name, "")), "instruction"]
    return page.section(title, source, page.table(header, rows, css="described"))


def _success_cells(of: TaskSuccesses, who: str) -> Iterator[str]:
    for success in (of.ever, of.final):
        yield charts.interval(success, who)
        yield f"{success.k}/{success.n}"


def starts(run: Location) -> str:
    """A cell for each start: which of the two policies succeeded there."""
    title, source = "Outcome of every start", "`eval_*/outcomes/*.json`; one square an init state, in order"
    outcomes = {
        who: {(outcome.task, outcome.init): outcome.success_ever for outcome in of.values()}
        for who, folder in EVALUATIONS.items()
        if (of := store.read_evaluation(run / folder))
    }
    if len(outcomes) < 2:
        return page.section(title, source, page.not_run("jobs/eval.py for both teacher and student"))
    kinds = {
        (True, True): "both",
        (True, False): "student-only",
        (False, True): "teacher-only",
        (False, False): "neither",
    }
    shared = sorted(outcomes["student"].keys() & outcomes["teacher"].keys())
    rows = []
    for task in sorted({task for task, _ in shared}):
        cells = []
        for start in (start for start in shared if start[0] == task):
            kind = kinds[outcomes["student"][start], outcomes["teacher"][start]]
            cells.append(f'<i class="{kind}" title="task {task}, {escape(start[1])}: {kind}"></i>')
        rows.append([f"task {task}", "".join(cells)])
    key = "".join(f'<i class="{kind}"></i>&thinsp;{kind.replace("-", " ")} &ensp;' for kind in kinds.values())
    return page.section(title, source, page.table(["", ""], rows, css="starts") + f'<p class="starts soft">{key}</p>')


def videos(run: Location, report: Location) -> str:
    title, source = "Videos", "`eval_*/videos/*.mp4`, written by `jobs/eval.py --videos N`; agentview and wrist camera"
    groups: dict[str, list[tuple[Location, str]]] = {
        "student, failures": [],
        "student, successes": [],
        "teacher, failures": [],
        "teacher, successes": [],
    }
    for who, folder in EVALUATIONS.items():
        outcomes = store.read_evaluation(run / folder)
        for path in files.children(run / folder / "videos", ".mp4"):
            if path.stem not in outcomes:  # of an earlier evaluation in the same folder
                continue
            outcome = outcomes[path.stem]
            word = "successes" if outcome.success_ever else "failures"
            caption = f"task {outcome.task}, {outcome.init}, {outcome.steps} steps: {outcome.instruction}"
            groups[f"{who}, {word}"].append((path, caption))
    parts, room = [], PAGE_VIDEO_BYTES
    for name, found in groups.items():
        players = []
        for path, caption in found[:VIDEOS_A_GROUP]:
            size = path.stat().st_size
            may_embed = size <= min(page.EMBED_BYTES, room)
            room -= size if may_embed else 0
            players.append(page.video(path, report, caption, may_embed))
        if players:
            more = f" ({len(found)} in all)" if len(found) > len(players) else ""
            parts.append(f'<h3>{name[0].upper()}{name[1:]}{more}</h3><div class="columns">{"".join(players)}</div>')
    return page.section(title, source, "".join(parts) or page.not_run("jobs/eval.py --videos 2"))
