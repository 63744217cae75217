"""Demonstrations in HDF5 as LIBERO's create_dataset.py and robomimic's scripts write them: by h5py alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np


@dataclass(frozen=True)
class Demo:
    """What a person did. Observation t was made before action t."""

    actions: np.ndarray
    images: dict[str, np.ndarray]
    """agentview, wrist: [T, H, W, 3], upright."""
    position: np.ndarray
    turned: np.ndarray
    """[T, 3] axis-angle."""
    fingers: np.ndarray
    states: np.ndarray
    """[T, …] the simulator's, before each action."""
    scene: str = ""


def demo_of(episode, states: np.ndarray | None = None, scene: str = "") -> Demo:
    return Demo(
        actions=episode.executed,
        images={camera: np.stack(images) for camera, images in episode.images.items()},
        position=episode.proprio[:, :3],
        turned=episode.proprio[:, 3:6],
        fingers=episode.proprio[:, 6:],
        states=np.zeros((len(episode), 4)) if states is None else states,
        scene=scene,
    )


def _after(values: np.ndarray) -> np.ndarray:
    """What LIBERO stores beside action t: what was seen when it had been executed. The last is seen for itself."""
    return np.concatenate([values[1:], values[-1:]])


def write_libero(path: Path, instruction: str, demos: Sequence[Demo]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["problem_info"] = json.dumps({"language_instruction": list(f'"{instruction}"')})
        data.attrs["macros_image_convention"] = "opengl"
        data.attrs["env_args"] = json.dumps({"env_kwargs": {"control_freq": 20}})
        for number, demo in enumerate(demos):
            group = data.create_group(f"demo_{number}")
            group.attrs["model_file"] = demo.scene
            group["actions"] = demo.actions.astype(np.float64)
            group["states"] = demo.states
            group["rewards"] = group["dones"] = np.eye(1, len(demo.actions), len(demo.actions) - 1)[0].astype(np.uint8)
            seen = group.create_group("obs")
            seen["agentview_rgb"] = _after(demo.images["agentview"])[:, ::-1]
            seen["eye_in_hand_rgb"] = _after(demo.images["wrist"])[:, ::-1]
            seen["ee_pos"], seen["ee_ori"] = _after(demo.position), _after(demo.turned)
            seen["gripper_states"] = _after(demo.fingers)
            seen["ee_states"] = np.hstack([seen["ee_pos"], seen["ee_ori"]])
    return path


def write_robomimic(path: Path, demos: Sequence[Demo], gripper: float = 1) -> Path:
    """Pictures upright, observations before their actions, orientation as a quaternion x, y, z, w."""
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps({"env_name": "Lift", "env_kwargs": {"control_freq": 20}})
        for number, demo in enumerate(demos):
            group = data.create_group(f"demo_{number}")
            group["actions"] = demo.actions * np.where(np.arange(7) == 6, gripper, 1)
            seen = group.create_group("obs")
            seen["agentview_image"] = demo.images["agentview"]
            angle = np.linalg.norm(demo.turned, axis=1, keepdims=True)
            seen["robot0_eef_pos"] = demo.position
            quaternion = [np.sin(angle / 2) * demo.turned / angle, np.cos(angle / 2)]
            seen["robot0_eef_quat"] = np.concatenate(quaternion, axis=1)
            seen["robot0_gripper_qpos"] = demo.fingers
    return path
