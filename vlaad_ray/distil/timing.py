"""What a network's parts take on this machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from vlaad_ray.distil.training import Frames
from vlaad_ray.models.vla.decoder import gated
from vlaad_ray.models.vla.mini import MiniVla

WARM, TIMED = 2, 15
"""Answers that don't count, and those whose median does."""


@torch.inference_mode()
def milliseconds(network: MiniVla, frames: Frames) -> tuple[float, float]:
    """Of an answer to one frame, on one thread: what always runs, and a layer."""
    images, proprio, instruction = (each[:1] for each in (frames.images, frames.proprio, frames.instruction))
    inputs = network.embed(images, proprio, instruction)

    def ends() -> None:
        network.readout(inputs.hidden, network.embed(images, proprio, instruction))

    def layers() -> None:
        gated(network, inputs)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    fixed, decoder = median(ends), median(layers)
    torch.set_num_threads(threads)
    return fixed, decoder / network.depth


def median(run: Callable[[], None]) -> float:
    seconds = []
    for _ in range(WARM + TIMED):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return 1000 * statistics.median(seconds[WARM:])
