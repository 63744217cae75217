"""Synthetic episodes: a hand that carries things, before noise. For measuring speed where there is no data.

The rules find their phases in the motion; pictures show nothing.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vlaad_ray import store
from vlaad_ray.types import CAMERAS, CONTROL_HZ, Episode, EpisodeKey, InitState

INSTRUCTIONS = (
    "pick up the milk and place it in the basket",
    "put the bowl on the plate",
    "put the cream cheese in the bowl",
    "push the plate to the front of the stove",
)
SUITE = "libero_object"
OPEN_M, HELD_M = 0.08, 0.04
"""Distance between the fingers: open, and around a thing."""
SPEED_M_S = 0.25
LEG = np.array([[0, 0, 0.25], [0.2, 0.1, 0.25], [0.2, 0.1, 0.05], [0.2, 0.1, 0.25], [0.0, -0.2, 0.25], [0, -0.2, 0.08]])
"""[6, 3] m: home, above a thing, at it (the gripper closes), up again, over its target, down (the gripper opens)."""
CLOSES, OPENS = 2, 5
FINGER_STEPS = 12
"""That the hand waits while the fingers move."""
SQUARES = 16
"""To a side of a picture."""


def episode(index: int, carries: int = 3, picture_every: int = 4, pixels: int = 128) -> Episode:
    """`carries` things one after the other, at places of the episode's own."""
    rng = np.random.default_rng(index)
    position, width, closed = [np.zeros((1, 3)) + LEG[0]], [np.array([OPEN_M])], [np.array([False])]
    for _ in range(carries):
        way = LEG + rng.uniform(-0.03, 0.03, LEG.shape)
        for number, goal in enumerate(way):
            here, last = position[-1][-1], bool(closed[-1][-1])
            steps = max(2, int(np.linalg.norm(goal - here) / SPEED_M_S * CONTROL_HZ))
            position.append(here + (goal - here) * np.linspace(0, 1, steps + 1)[1:, None])
            width.append(np.full(steps, width[-1][-1]))
            closed.append(np.full(steps, last))
            if number in (CLOSES, OPENS):
                to = HELD_M if number == CLOSES else OPEN_M
                position.append(np.repeat(goal[None], FINGER_STEPS, 0))
                width.append(np.linspace(width[-1][-1], to, FINGER_STEPS))
                closed.append(np.full(FINGER_STEPS, number == CLOSES))
    places, fingers, gripper = (np.concatenate(each) for each in (position, width, closed))
    steps = len(places)
    proprio = np.zeros((steps, 8), np.float32)
    proprio[:, :3], proprio[:, 3] = places, np.pi
    proprio[:, 6], proprio[:, 7] = fingers / 2, -fingers / 2
    actions = np.zeros((steps, 7), np.float32)
    actions[:-1, :3] = np.clip(np.diff(places, axis=0) * CONTROL_HZ, -1, 1)
    actions[:, 6] = np.where(gripper, 1, -1)
    # Squares of one colour each, as JPEG of noise takes five times the room.
    squares = [rng.integers(0, 256, (SQUARES, SQUARES, 3), np.uint8) for _ in range(0, steps, picture_every)]
    drawn = [each.repeat(pixels // SQUARES, 0).repeat(pixels // SQUARES, 1) for each in squares]
    pictures = tuple(None if step % picture_every else drawn[step // picture_every] for step in range(steps))
    instruction = INSTRUCTIONS[index % len(INSTRUCTIONS)]
    images = dict.fromkeys(CAMERAS, pictures)
    return Episode(key(index), instruction, proprio, actions, actions, (None,) * steps, images, steps, True, steps)


def key(index: int) -> EpisodeKey:
    return EpisodeKey(SUITE, 0, InitState("placement", index), "synthetic", 0, "00000000")


def write_dataset(directory: Path, count: int) -> Path:
    """Store `count` episodes, those that are not there; returns the directory."""
    there = store.stored_episodes(directory)
    for index in range(count):
        if key(index).name not in there:
            store.write_episode(directory, episode(index), {"render": "fast"})
    return directory
