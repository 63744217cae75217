"""Benchmarks against a baseline in the same run.

python jobs/bench.py rollout --out DIR                  control steps per second against LIBERO's own loop
python jobs/bench.py annotate --data DIR --out DIR      answers per second through Ray Data against vLLM alone
python jobs/bench.py openvla --size full --out DIR      OpenVLA's latency and throughput, batched against one by one
python jobs/bench.py policy --policy vlaad_158m --out DIR     a student in every backend against OpenVLA-7B
python jobs/bench.py teacher --out DIR                  batched teacher requests against the ideal, and plainer batching
python jobs/bench.py audit --data DIR --out DIR         what the audit sees of a server that lies at known rates
"""

import importlib
from collections.abc import Callable
from typing import Any

import tyro

from vlaad_ray.configs import (
    BenchAnnotateConfig,
    BenchAuditConfig,
    BenchOpenVlaConfig,
    BenchPolicyConfig,
    BenchRolloutConfig,
    BenchTeacherConfig,
)
from vlaad_ray.runtime.cli import run_stage

CONFIGS: dict[str, Callable[..., Any]] = {
    "rollout": BenchRolloutConfig,
    "annotate": BenchAnnotateConfig,
    "audit": BenchAuditConfig,
    "openvla": BenchOpenVlaConfig,
    "policy": BenchPolicyConfig,
    "teacher": BenchTeacherConfig,
}

MODULES = {"audit": "lies"}
"""Where a benchmark's module is called otherwise than the benchmark."""

if __name__ == "__main__":
    config = tyro.extras.subcommand_cli_from_dict(CONFIGS)
    (name,) = (name for name, kind in CONFIGS.items() if type(config) is kind)
    # Imported only now: each needs packages that the others can do without.
    bench = importlib.import_module(f"vlaad_ray.experiments.bench.{MODULES.get(name, name)}")
    run_stage(config, getattr(bench, f"bench_{name}"), bench.show)
