"""Environments, by the suite that their tasks belong to. A new one is one file and one line in SUITES.

Nothing heavy is imported before a suite is chosen.
"""

from vlaad_ray import plugins
from vlaad_ray.envs.libero_suites import libero_suites
from vlaad_ray.envs.suite import Env, MakeEnv, SimulatorError, Suite, check_starts

__all__ = ["SUITES", "Env", "MakeEnv", "SimulatorError", "Suite", "check_starts", "find_suite"]

SUITES: dict[str, Suite] = {**libero_suites()}


def find_suite(name: str) -> Suite:
    """The suite called `name`, a plugin's if need be. Raises UserError for an unknown one."""
    return plugins.lookup("suite", SUITES, name)
