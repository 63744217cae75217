"""Self-contained HTML pages, light and dark: the report of a pipeline run, and the contact sheet of a VLM's answers.

`write_report(RUN)` writes RUN/report.html from what the stages left there (docs/store.md); so does
`python -m vlaad_ray.report RUN`. A stage that has not run is shown as such; a corrupt file is an error that names it.
"""

from __future__ import annotations

from vlaad_ray import store
from vlaad_ray.configs import Location, UserError
from vlaad_ray.files import reach
from vlaad_ray.report import evaluation, learning, noise, page, timeline
from vlaad_ray.report.contact_sheet import write_contact_sheet

__all__ = ["write_contact_sheet", "write_noise", "write_report"]


def write_report(run: Location) -> Location:
    """Write run/report.html and return its path. Raises UserError when `run` is no directory or a file is corrupt."""
    reach(run)
    if not run.is_dir():
        raise UserError(f"{run} is not a directory; make a run with jobs/pipeline.py --out {run}")
    path = run / "report.html"
    content = page.document(
        f"vlaad_ray: {run.resolve().name}",
        [
            evaluation.headline(run),
            evaluation.success_by_task(run),
            evaluation.starts(run),
            evaluation.videos(run, path),
            learning.counts(run),
            learning.seconds(run),
            timeline.timeline(run),
            learning.phases(run),
            learning.vlm(run),
            learning.training(run),
            learning.provenance(run),
        ],
    )
    return _write(path, content)


def write_noise(out: Location) -> Location:
    """Write out/noise.html from what jobs/audit.py left in `out`, and return its path."""
    return _write(out / "noise.html", page.document("vlaad_ray: noise", noise.sections(out)))


def _write(path: Location, content: str) -> Location:
    with store.replacing(path) as temporary:
        temporary.write_text(content, encoding="utf-8")
    return path
