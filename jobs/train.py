"""Train a student: python jobs/train.py --data DIR --annotations DIR --objective dual_path --out DIR."""

from vlaad_ray.cli import run_job
from vlaad_ray.configs import TrainConfig
from vlaad_ray.train import table, train

if __name__ == "__main__":
    run_job(TrainConfig, train, table)
