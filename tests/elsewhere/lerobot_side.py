"""LeRobot's own loader and writer, run where lerobot is installed, by test_lerobot.py. Nothing of ours is imported.

read ROOT FRAMES.npz     every frame of a dataset as LeRobotDataset gives it, and its statistics: stored, and as lerobot
                         computes them of the same numbers
write ROOT FRAMES.npz video|image     a dataset of these frames, by LeRobotDataset's own writer
"""

import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import numpy as np
from lerobot.datasets.compute_stats import aggregate_stats, compute_episode_stats
from lerobot.datasets.lerobot_dataset import LeRobotDataset

CAMERAS = ("observation.images.image", "observation.images.image2")


def read(root: str, out: str) -> None:
    # torchcodec, its usual one, needs an installed FFmpeg
    dataset = LeRobotDataset("test/ours", root=root, video_backend="pyav")
    frames = [dataset[number] for number in range(len(dataset))]
    found = {name: np.stack([frame[name].numpy() for frame in frames]) for name in ("action", "observation.state")}
    found |= {name: np.stack([frame[name].numpy() for frame in frames]) for name in CAMERAS}
    found |= {name: np.stack([frame[name].numpy() for frame in frames]) for name in ("timestamp", "episode_index")}
    found |= {name: np.array([frame[name] for frame in frames]) for name in ("task", "annotation.phase")}
    numbers = {name: dataset.features[name] for name in ("action", "observation.state")}
    of_episodes = []
    for episode in np.unique(found["episode_index"]):
        mine = found["episode_index"] == episode
        of_episodes.append(compute_episode_stats({name: found[name][mine] for name in numbers}, numbers))
    for name, of in aggregate_stats(of_episodes).items():
        found |= {f"computed/{name}/{key}": value for key, value in of.items()}
    for name, of in dataset.meta.stats.items():
        found |= {f"stored/{name}/{key}": value for key, value in of.items()}
    np.savez(out, **found)


def write(root: str, given: str, kind: str) -> None:
    frames = np.load(given)
    height, width, _ = frames[CAMERAS[0]].shape[1:]
    picture = {"dtype": kind, "shape": (height, width, 3), "names": ["height", "width", "channel"]}
    features = {camera: dict(picture) for camera in CAMERAS}
    features["observation.state"] = {"dtype": "float32", "shape": (8,), "names": None}
    features["action"] = {"dtype": "float32", "shape": (7,), "names": None}
    dataset = LeRobotDataset.create("test/theirs", 20, features, root=root, use_videos=kind == "video")
    for number, episode in enumerate(frames["episode_index"]):
        if number and episode != frames["episode_index"][number - 1]:
            dataset.save_episode(parallel_encoding=False)
        dataset.add_frame({name: frames[name][number] for name in features} | {"task": str(frames["task"][number])})
    dataset.save_episode(parallel_encoding=False)
    dataset.finalize()


if __name__ == "__main__":
    {"read": read, "write": write}[sys.argv[1]](*sys.argv[2:])
