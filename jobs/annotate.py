"""Stage 2, label every frame of a dataset.

python jobs/annotate.py --data DIR --annotator rules --phases 9 --out DIR
"""

from vlaad_ray.annotate import annotate, table
from vlaad_ray.cli import run_job
from vlaad_ray.configs import AnnotateConfig

if __name__ == "__main__":
    run_job(AnnotateConfig, annotate, table)
