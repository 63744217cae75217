"""The teacher: turns a task's goal into a program of skills and runs it, one action at a time."""

from __future__ import annotations

from collections.abc import Generator

import numpy as np

from vlaad_ray.configs import UserError
from vlaad_ray.envs.libero import LiberoEnv
from vlaad_ray.teachers.scripted.articulated import (
    is_drawer,
    pull_drawer,
    push_flat,
    shut_drawer,
    turn_knob,
)
from vlaad_ray.teachers.scripted.cavity import put_in_cavity
from vlaad_ray.teachers.scripted.doors import open_door, shut_door
from vlaad_ray.teachers.scripted.geometry import Scene, rotation_about
from vlaad_ray.teachers.scripted.motion import OPEN, Command, Motion, reach
from vlaad_ray.teachers.scripted.placing import Placement, clear_drawer, pick_and_place, room_for_hand
from vlaad_ray.teachers.scripted.shelf import put_on_shelf
from vlaad_ray.types import ActionChunk, Observation

UP = np.array([0, 0, 1.0])
ROUNDS = 4
"""Times that the whole goal is tried."""
ORDER = {"open": 0, "turnon": 1, "turnoff": 1, "on": 2, "in": 2, "close": 3}
"""Goals are worked off in this order: a drawer opens before and shuts after things go in."""

Goal = list[str]
"""A predicate and its arguments, as in LIBERO's BDDL files: ["on", "bowl_1", "plate_1"]."""


class ScriptedTeacher:
    """Privileged expert behind the interface of a policy: it ignores the observation and reads the simulator.

    It answers one action at a time from the state that it finds, so the executed action may differ from the one it
    asked for.
    """

    needs_images = False

    def __init__(self, env: LiberoEnv):
        self._env = env
        self._program: Generator[Command, None, bool] | None = None
        self._gripper = OPEN
        self._phase = "idle"
        check_goals(env)

    def reset(self, instruction: str) -> None:
        """Plan anew from the simulator's present state. The task's goal decides what to do, not the instruction."""
        self._program = program(Scene(self._env))
        self._gripper, self._phase = OPEN, "idle"

    @property
    def done(self) -> bool:
        """Nothing is left to do: the goal is reached (or given up) and the hand has retreated."""
        return self._program is None

    def infer(self, observation: Observation) -> ActionChunk:
        """One action, [1, 7] float32. Once done, it keeps still."""
        command = next(self._program, None) if self._program is not None else None
        if command is None:
            self._program = None
            command = Command(np.array([0, 0, 0, 0, 0, 0, self._gripper]), self._phase)
        self._gripper, self._phase = float(command.action[6]), command.phase
        return ActionChunk(np.clip(command.action, -1, 1).astype(np.float32)[None], command.phase)


def check_goals(env: LiberoEnv) -> None:
    """Raises UserError if a predicate of the task's goal is none that the expert knows."""
    for goal in env.problem.parsed_problem["goal_state"]:
        if goal[0] not in ORDER:
            raise UserError(
                f"the scripted teacher knows no predicate {goal[0]!r}, a goal of {env.suite} task {env.task}; "
                "choose another task or teacher"
            )


def program(scene: Scene) -> Motion:
    """All that it takes: skills until every goal holds, then the retreat."""
    goals = sorted((list(goal) for goal in scene.problem.parsed_problem["goal_state"]), key=lambda g: turn(scene, g))
    for _ in range(ROUNDS):
        for goal in goals:
            if not scene.holds(goal):
                yield from pursue(scene, goal)
        yield from reach(
            scene, scene.hand + np.array([0, 0, 0.08]), scene.hand_rotation, OPEN, "completed", tolerance=0.02, limit=12
        )
        if all(scene.holds(goal) for goal in goals):
            return True
    return False


def turn(scene: Scene, goal: Goal) -> tuple[int, float]:
    """When a goal's turn comes: by ORDER, and low things before tall ones, which would be in the hand's way."""
    if goal[0] == "close" and not goes_into(scene, goal[1]):
        return -1, 0.0  # out of the way of what opens above it
    if goal[0] not in ("on", "in"):
        return ORDER[goal[0]], 0.0
    low, high = scene.box(goal[1])
    return ORDER[goal[0]], round(float(high[2] - low[2]), 2)


def goes_into(scene: Scene, region: str) -> list[str]:
    """What the task wants in a drawer's region, or in any region of a fixture."""
    goals = [goal for goal in scene.problem.parsed_problem["goal_state"] if goal[0] == "in"]
    return [goal[1] for goal in goals if region in (goal[2], scene.region_parent(goal[2]))]


def pursue(scene: Scene, goal: Goal) -> Motion:
    """One attempt at one goal."""
    predicate, name = goal[0], goal[1]
    if predicate == "open":
        joint = scene.region_joint(name)
        if not is_drawer(scene, joint):
            return (yield from open_door(scene, name))
        for thing in goes_into(scene, name):
            yield from clear_drawer(scene, thing, joint)
        return (yield from pull_drawer(scene, name))
    if predicate == "close":
        shut = shut_drawer if is_drawer(scene, scene.region_joint(name)) else shut_door
        return (yield from shut(scene, name))
    if predicate == "turnon":
        return (yield from turn_knob(scene, name, lambda angle: angle > 0.6, 1.0))
    if predicate == "turnoff":
        return (yield from turn_knob(scene, name, lambda angle: angle < -0.002, -1.0))
    return (yield from put(scene, name, goal[2]))


def put(scene: Scene, name: str, target: str) -> Motion:
    """Bring an object on or into another, or a region."""
    if not scene.is_region(target):
        return (yield from pick_and_place(scene, name, Placement(lambda: on_object(scene, target))))
    parent = scene.region_parent(target)
    if parent is None and "plate" in name:
        return (yield from push_flat(scene, name, scene.position(target)))
    if scene.has_joint(target) and not scene.holds(["open", target]):
        yield from clear_drawer(scene, name, scene.region_joint(target))
        yield from pull_drawer(scene, target)
    elif scene.has_joint(target) and not room_for_hand(scene, name, target):
        yield from shut_drawer(scene, target, until=lambda: room_for_hand(scene, name, target))
    if parent is not None and "microwave" in parent and "mug" in name:
        return (yield from put_in_cavity(scene, name, target, parent))
    if parent is not None and "shelf" in parent and "side" not in target:
        return (yield from put_on_shelf(scene, name, target, parent))
    return (yield from pick_and_place(scene, name, in_region(scene, name, target, parent)))


def on_object(scene: Scene, target: str) -> np.ndarray:
    """[3] where the lowest point of a thing goes when it is put on another object."""
    low, _ = scene.box(target)
    return np.array([*scene.position(target)[:2], low[2] + (0.02 if "plate" in target else 0.03)])


def in_region(scene: Scene, name: str, region: str, parent: str | None) -> Placement:
    """How a thing is put on or into a region."""
    centre = scene.position(region)
    if scene.has_joint(region):
        # Towards the drawer's front, clear of the handles above it.
        outward = -scene.joint_axis(scene.region_joint(region))
        if scene.position(name)[2] - scene.box(name)[0][2] > 2 * scene.region_half(region)[2]:
            return laid_down(scene, region, outward)
        return Placement(lambda: scene.position(region) + 0.02 * outward)
    if parent is not None and "rack" in parent:
        return on_rack(scene, centre, parent)
    if parent is not None and "caddy" in parent:
        return in_caddy(scene, name, region, parent)
    if parent is not None and "basket" in parent:
        return Placement(lambda: np.array([*scene.position(region)[:2], scene.box(parent)[1][2] - 0.03]))
    centre[2] += 0.035 if "cook" in region else 0.012
    mates = [g[1] for g in scene.problem.parsed_problem["goal_state"] if g[0] == "on" and g[-1] == region]
    if len(mates) > 1:
        low, high = scene.box(name)
        side = int(np.argmin((high - low)[:2]))
        centre[side] += 0.047 * (-1 if mates.index(name) == 0 else 1)
    return Placement(lambda: centre)


def laid_down(scene: Scene, region: str, outward: np.ndarray) -> Placement:
    """A bottle whose middle, upright, would be above a drawer: let go aslant it falls flat, across the drawer."""
    across = np.cross(UP, outward)
    across = across if across[0] > 0 else -across
    half = scene.region_half(region)[2]

    def middle() -> np.ndarray:
        return scene.position(region) + 0.01 * outward - half * UP

    return Placement(middle, align=outward[:2], lean=rotation_about(np.cross(across, UP), 0.7))


def on_rack(scene: Scene, lip: np.ndarray, rack: str) -> Placement:
    """A bottle's foot behind the rack's lip, leaning up its slope: upright it would topple off."""
    low, high = scene.box(rack)
    slope = ((low + high) / 2 - lip)[:2]
    slope = slope / np.linalg.norm(slope)
    across = np.array([-slope[1], slope[0], 0.0])
    foot = np.array([*(lip[:2] + slope * 0.002), lip[2] + 0.008])
    return Placement(lambda: foot, lean=rotation_about(across, 0.5), closing=across)


def in_caddy(scene: Scene, name: str, region: str, caddy: str) -> Placement:
    """A book across the narrow side of its compartment, leaning: upright on the floor its origin is 4 mm too low."""
    centre, size = scene.position(region), np.abs(scene.region_axes(region) @ scene.region_size(region))
    narrow = np.eye(3)[int(np.argmin(size[:2]))]
    low, high = scene.box(caddy)
    inward = narrow * np.sign(((low + high) / 2 - centre) @ narrow)
    foot = centre - inward * 0.012
    foot[2] = low[2] + 0.009
    return Placement(lambda: foot, align=narrow[:2], lean=rotation_about(np.cross([0, 0, 1.0], inward), 0.31))
