"""Benchmarks against a baseline in the same run.

python jobs/bench.py rollout --out DIR      control steps per second against LIBERO's own loop
"""

import tyro

from vlaad_ray.bench import rollout
from vlaad_ray.cli import run_stage
from vlaad_ray.configs import BenchRolloutConfig

if __name__ == "__main__":
    config = tyro.extras.subcommand_cli_from_dict({"rollout": BenchRolloutConfig})
    run_stage(config, rollout.bench_rollout, rollout.show)
