"""The paper's claims put to the test, on your own teacher; each leaves a table, a plot and the raw numbers.

python jobs/study.py distillation       the student against its teacher on three suites
python jobs/study.py noise              does semantics beat plain cloning when the teacher flips its gripper?
python jobs/study.py phases             3 to 13 phases: how even, and what for the student?
python jobs/study.py alpha              weight of the path without description, by suite
python jobs/study.py alpha --tasks 0 --epochs 2 --placements 0 --eval-init-states 20-22    small, to see it work
"""

import importlib
import sys
from collections.abc import Callable
from typing import Any

import tyro

from vlaad_ray.configs import StudyAlphaConfig, StudyDistillationConfig, StudyNoiseConfig, StudyPhasesConfig
from vlaad_ray.runtime import doors
from vlaad_ray.runtime.cli import console, users_errors

CONFIGS: dict[str, type[Any]] = {
    "phases": StudyPhasesConfig,
    "noise": StudyNoiseConfig,
    "alpha": StudyAlphaConfig,
    "distillation": StudyDistillationConfig,
}

if __name__ == "__main__":
    with users_errors():
        words = doors.take_plugins(sys.argv[1:])
        kinds: dict[str, Callable[..., Any]] = {
            name: doors.with_settings(kind, words) for name, kind in CONFIGS.items()
        }
        config = doors.plain(tyro.extras.subcommand_cli_from_dict(kinds, args=words))
        (name,) = (name for name, kind in CONFIGS.items() if type(config) is kind)
        page = importlib.import_module(f"vlaad_ray.experiments.studies.{name}").study(config)
    console.print(page.read_text(), markup=False)
    console.print(f"Results: {page}")
