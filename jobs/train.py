"""Train a student: python jobs/train.py --data DATA --annotations NOTES --objective dual_path --out RUN.

--config FILE takes settings from a sweep's best.json or from another run's config.json; flags beside it win:
python jobs/train.py --config SWEEP/best.json --epochs 30 --out RUN
"""

import sys

from vlaad_ray.configs import TrainConfig
from vlaad_ray.runtime.cli import run_job, users_errors
from vlaad_ray.runtime.record import with_config_file
from vlaad_ray.train.stage import table, train

if __name__ == "__main__":
    with users_errors():
        args = with_config_file(sys.argv[1:], TrainConfig)
    run_job(TrainConfig, train, table, args)
