"""Search for hyperparameters with Ray Tune; ends with a table, a plot and a config that jobs/train.py takes.

python jobs/sweep.py --data DATA --out SWEEP --epochs 8 --trials 12
python jobs/sweep.py --data DATA --out SWEEP --search grid --space.phases 3,5,7,9,11,13 --space.alpha 1 --space.lr ''
python jobs/sweep.py --data DATA --out SWEEP --search bayesian --goal both --no-early-stopping
"""

from vlaad_ray.configs import SweepConfig
from vlaad_ray.experiments.sweep import show, sweep
from vlaad_ray.runtime.cli import run_job

if __name__ == "__main__":
    run_job(SweepConfig, sweep, show)
