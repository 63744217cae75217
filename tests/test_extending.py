"""A toy of each kind from outside the package: environment, teacher, architecture, method, metric; in one run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from vlaad_ray import store
from vlaad_ray.types import Outcome

ROOT = Path(__file__).parent.parent
PLUGINS = ("reach", "reach_expert", "tiny_student", "progress_method", "path_metric")
COMMANDS = """
import sys
from vlaad_ray.main import main

out, *plugins = sys.argv[1:]
add = [word for name in plugins for word in ("--plugin", name)]
reach = ["--suite", "reach", "--stride", "0.2", "--actors", "1"]
main("collect", [*add, *reach, "--teacher", "reach_expert", "--speed", "0.5", "--tasks", "0-3", "--init-states", "0-3",
                 "--out", f"{out}/data"])
main("train", [*add, "--student", "tiny", "--objective", "progress", "--progress-weight", "0.2", "--epochs", "20",
               "--checkpoint-every", "20", "--batch-size", "4", "--lr", "3e-3", "--workers", "1",
               "--data", f"{out}/data", "--out", f"{out}/run"])
main("eval", [*add, *reach, "--policy", f"{out}/run/checkpoint", "--execute", "1", "--tasks", "0-3",
              "--init-states", "8-9", "--videos", "0", "--out", f"{out}/eval"])
"""


def test_what_a_user_adds_from_outside_is_collected_trained_and_evaluated(tmp_path):
    path = os.pathsep.join([str(ROOT / "tests" / "plugins"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", COMMANDS, str(tmp_path), *PLUGINS]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert store.read_json(tmp_path / "data" / "summary.json")["episodes"]["kept"] == 16
    record = json.loads((tmp_path / "run" / "checkpoint" / "config.json").read_text())
    assert (record["architecture"], record["student"]["action_dim"], record["student"]["cameras"]) == (
        "tiny",
        2,
        ["top"],
    )
    assert record["training"]["progress_weight"] == 0.2
    outcomes = store.read_outcomes(tmp_path / "eval", Outcome).values()
    assert len(outcomes) == 8
    assert all(0 < outcome.metrics["way_gone"] < 30 * 0.2 * 2**0.5 for outcome in outcomes)
    # It was taught where to go: a policy that does not look reaches one corner of four at most.
    assert sum(outcome.success_ever for outcome in outcomes) >= 4
