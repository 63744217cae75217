"""Evaluate a teacher or a student closed loop in LIBERO, in parallel, with intervals and videos.

python jobs/eval.py --policy scripted --suite libero_object --tasks 0-9 --init-states 20-39 --out DIR
python jobs/eval.py --policy RUN/train/checkpoint --compare-to DIR --out DIR2
"""

from vlaad_ray.configs import EvalConfig
from vlaad_ray.evaluate.stage import evaluate, show
from vlaad_ray.runtime.cli import run_job

if __name__ == "__main__":
    run_job(EvalConfig, evaluate, show)
