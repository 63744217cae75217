"""A tiny task that can be learned: the first action says where the cup of the named colour is in the picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from vlaad_ray import store
from vlaad_ray.models.student.checkpoint import save_pretrained
from vlaad_ray.models.student.small import SmallConfig, SmallStudent
from vlaad_ray.models.student.text import train_tokenizer
from vlaad_ray.types import CAMERAS, LIBERO, Annotation, Embodiment, Episode, EpisodeKey, InitState

COLOURS = ("red", "green")
INSTRUCTIONS = tuple(f"pick up the {colour} cup" for colour in COLOURS)


def picture(columns: tuple[float, float], size: int, rng: np.random.Generator) -> np.ndarray:
    """A red cup in the upper half, a green one in the lower, at `columns` in [0, 1] of the width; noise behind."""
    image = rng.integers(0, 40, (size, size, 3), dtype=np.uint8)
    half = size // 10
    for colour, column in enumerate(columns):
        x, y = int(half + column * (size - 2 * half)), size // 4 + colour * size // 2
        image[y - half : y + half, x - half : x + half, colour] = 255
    return image


def episode(index: int, steps: int = 30, size: int = 32, placement: bool = False) -> Episode:
    """Even episodes name the red cup, odd ones the green. The gripper closes half-way."""
    rng = np.random.default_rng(index)
    wanted = index % 2
    columns = rng.uniform(0, 1, (steps, 2))
    frames = tuple(picture(tuple(pair), size, rng) for pair in columns)
    actions = np.zeros((steps, 7), np.float32)
    actions[:, 0] = 2 * columns[:, wanted] - 1
    actions[:, 6] = np.where(np.arange(steps) < steps // 2, -1, 1)
    proprio = rng.normal(size=(steps, 8)).astype(np.float32)
    proprio[:, 7] = actions[:, 6]
    key = EpisodeKey(
        "libero_object", wanted, InitState("placement" if placement else "stored", index), "scripted", 0, "00000000"
    )
    images = {camera: frames for camera in CAMERAS}
    return Episode(key, INSTRUCTIONS[wanted], proprio, actions, actions, (None,) * steps, images, steps, True, 280)


def annotation(of: Episode) -> Annotation:
    """Two phases; the description says what only the picture says otherwise: left or right."""
    phases = tuple("approaching" if gripper < 0 else "grasping" for gripper in of.actions[:, 6])
    directions = tuple("moving left" if x < 0 else "moving right" for x in of.actions[:, 0])
    return Annotation(
        episode=of.key.name,
        phases=phases,
        directions=directions,
        descriptions=tuple(f"{phase}, {direction}" for phase, direction in zip(phases, directions, strict=True)),
        segments=np.array([int(phase == "grasping") for phase in phases], np.int32),
        sources=("rules",) * len(phases),
        flags=("",) * len(phases),
    )


def write_dataset(
    root: Path, count: int, steps: int = 30, size: int = 32, placement: bool = False
) -> tuple[Path, Path]:
    """Store `count` episodes with annotations -> (data, annotations)."""
    data, annotations = root / "data", root / "annotations"
    for index in range(count):
        each = episode(index, steps, size, placement)
        store.write_episode(data, each, {"render": "fast"})
        store.write_annotation(annotations, annotation(each), {"annotator": "rules", "taxonomy": 9})
    return data, annotations


def write_student(directory: Path, robot: Embodiment = LIBERO) -> Path:
    """Store a small student whose random weights say something else about every picture -> `directory`."""
    tokenizer = train_tokenizer(INSTRUCTIONS, 16)
    torch.manual_seed(0)
    student = SmallStudent(
        SmallConfig(
            image_size=32,
            width=8,
            hidden=32,
            vocabulary=tokenizer.vocabulary,
            text_length=16,
            cameras=robot.cameras,
            action_dim=robot.action_dim,
            proprio_dim=robot.proprio_dim,
            gripper=robot.gripper,
        )
    )
    torch.nn.init.normal_(student.head[-1].weight, std=1.0)
    save_pretrained(directory, student, tokenizer, {"render": "fast"})
    return directory
