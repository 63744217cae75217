"""The audit as a command: of a dataset, or of a teacher that acts for it; and its page."""

from __future__ import annotations

from rich.markup import escape

from vlaad_ray import collect, report, store
from vlaad_ray.configs import AuditConfig, CollectConfig, Location, UserError, parse_range
from vlaad_ray.envs import find_suite
from vlaad_ray.quality.stage import audit
from vlaad_ray.runtime import cli, places
from vlaad_ray.runtime.record import begin
from vlaad_ray.summaries import AuditSummary
from vlaad_ray.teachers import find_teacher


def run_audit(config: AuditConfig) -> AuditSummary:
    """Collect if a teacher is to be audited; audit; draw the page."""
    begin(config.out, config, {"--data": config.data})
    if (config.data is None) == (config.teacher is None):
        raise UserError("give either --data DIR (a dataset) or --teacher NAME (a teacher to run), not both or neither")
    places.check(config)
    paths = store.list_episodes(config.data) if config.data is not None else live_episodes(config)
    summary = audit(config, paths)
    for line in summary.verdict:
        cli.console.print(f"[bold]{escape(line)}[/]")
    cli.console.print(f"Page: {report.write_noise(config.out)}")
    return summary


def live_episodes(config: AuditConfig) -> list[Location]:
    """Let the teacher act, failures included, into OUT/data; the episode files."""
    assert config.teacher is not None
    tasks = parse_range(config.tasks, "--tasks")
    if not tasks:
        raise UserError("nothing to audit: give --tasks")
    per_task = -(-config.episodes // len(tasks))
    suite = find_suite(config.suite)
    stored = min(per_task, suite.held_out.start or min(map(suite.init_states, tasks)))
    collection = CollectConfig(
        out=config.out / "data",
        suite=config.suite,
        tasks=config.tasks,
        init_states=f"0-{stored - 1}" if stored else "",
        placements=per_task - stored,
        teacher=config.teacher,
        execute=config.execute,
        seed=config.seed,
        image_every=config.image_every,
        keep_failed=True,
        teacher_config=config.teacher_config,
        serving=config.serving,
        teacher_noise=config.teacher_noise,
        env=config.env,
        fleet=config.fleet,
    )
    collect.collect(collection)
    teacher = find_teacher(config.teacher, config.teacher_config, config.suite, config.execute)
    names = {spec.key.name for spec in collect.plan_episodes(collection, teacher)}
    return [path for path in store.list_episodes(collection.out) if path.stem in names]
