"""Stage 2, label every frame of a dataset.

python jobs/annotate.py --data DIR --annotator rules --phases 9 --out DIR
python jobs/annotate.py --data DIR --annotator vlm --model NAME --out DIR      then look at DIR/contact_sheet.html
"""

from typing import Any

from vlaad_ray.annotate import annotate, table
from vlaad_ray.configs import AnnotateConfig
from vlaad_ray.report import write_contact_sheet
from vlaad_ray.runtime import cli


def annotate_and_show(config: AnnotateConfig) -> dict[str, Any]:
    """Annotate; of a VLM's answers make the sheet on which a person judges them."""
    summary = annotate(config)
    if config.annotator == "vlm" and config.vlm.sheet:
        sheet = write_contact_sheet(config.out, config.data, config.vlm.sheet)
        cli.console.print(f"Contact sheet: {sheet}")
    return summary


if __name__ == "__main__":
    cli.run_job(AnnotateConfig, annotate_and_show, table)
