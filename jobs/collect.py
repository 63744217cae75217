"""Roll out a teacher in LIBERO over Ray actors and keep the successful episodes.

python jobs/collect.py --suite libero_object --tasks 0-9 --init-states 0-19 --teacher scripted --actors 2 --out DIR
"""

from vlaad_ray.collect import collect, show
from vlaad_ray.configs import CollectConfig
from vlaad_ray.runtime.cli import run_job

if __name__ == "__main__":
    run_job(CollectConfig, collect, show)
