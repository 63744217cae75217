"""A checkpoint in torch: fp32 or bf16; operation by operation, through CUDA graphs, or compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from vlaad_ray.configs import UserError
from vlaad_ray.deploy.decoding import decode
from vlaad_ray.models.student.model import Student
from vlaad_ray.types import ActionChunk

Dtype = Literal["fp32", "bf16"]
Mode = Literal["eager", "graphs", "compiled"]
"""How the network is run. eager: operation by operation. graphs: CUDA graphs of that. compiled: by torch.compile."""
BATCHES = (1, 2, 4, 8, 16, 32)
"""Batch sizes that get a graph or a compilation; others are filled up to the next one, larger ones cut into pieces."""
CUDA_COMPILE_MODE = "reduce-overhead"
"""torch.compile's mode on CUDA, which puts what was compiled into CUDA graphs; elsewhere its default one."""
Program = Callable[[Tensor, Tensor, Tensor], Tensor]


class TorchBackend:
    """Takes the student over: its weights are moved and, for bf16, rounded."""

    def __init__(self, student: Student, device: str = "cpu", dtype: Dtype = "fp32", mode: Mode | None = None):
        """`mode` None: graphs on CUDA, eager elsewhere. Raises UserError for graphs elsewhere."""
        self._device = torch.device(device)
        self._mode = mode or ("graphs" if self._device.type == "cuda" else "eager")
        if self._mode == "graphs" and self._device.type != "cuda":
            raise UserError(f"CUDA graphs need a GPU, not device {device}; choose eager or compiled")
        self.name = f"torch-{dtype}" if self._device.type == "cpu" else f"{self._device.type}-{dtype}"
        self._student = student.to(device=self._device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._student.eval().requires_grad_(False)
        self._autocast = torch.autocast(self._device.type, torch.bfloat16, enabled=dtype == "bf16", cache_enabled=False)
        if dtype == "bf16":
            halve(self._student)
        self._programs: dict[int, Program] = {}

    @torch.inference_mode()
    def encode_text(self, tokens: np.ndarray) -> np.ndarray:
        with self._autocast:
            text = self._student.encode_text(torch.from_numpy(tokens).to(self._device))
        return text.float().cpu().numpy()

    @torch.inference_mode()
    def output(self, images: np.ndarray, proprio: np.ndarray, text: np.ndarray) -> np.ndarray:
        inputs = torch.from_numpy(images), torch.from_numpy(proprio), torch.from_numpy(text)
        # A program captured whole would replay the layers that its first picture needed.
        if self._mode == "eager" or self._student.dynamic:
            return self._run(*(each.to(self._device) for each in inputs)).cpu().numpy()
        pieces = zip(*(each.split(BATCHES[-1]) for each in inputs), strict=True)
        return torch.cat([self._through_program(*piece) for piece in pieces]).numpy()

    def decode(self, output: np.ndarray) -> list[ActionChunk]:
        return decode(output, self._student.decode)

    def _run(self, images: Tensor, proprio: Tensor, text: Tensor) -> Tensor:
        with self._autocast:
            features = self._student.perceive(images, proprio, text)
        return self._student.decide(features.float())

    def _through_program(self, *inputs: Tensor) -> Tensor:
        """Through that for the next batch size, made when it is first wanted; the surplus is dropped."""
        count = len(inputs[0])
        batch = next(size for size in BATCHES if size >= count)
        if batch not in self._programs:
            make = capture if self._mode == "graphs" else compiled
            example = [each[:1].expand(batch, *each.shape[1:]).to(self._device) for each in inputs]
            self._programs[batch] = make(self._run, *example)
        return self._programs[batch](*inputs)[:count].cpu()


def halve(student: Student) -> None:
    """The trunk's weights to bf16. Not its buffers (a few millimetres of proprioception), nor the head."""
    for module in student.trunk():
        for parameter in module.parameters():
            parameter.data = parameter.data.to(torch.bfloat16)


def capture(function: Program, *example: Tensor) -> Program:
    """A CUDA graph of `function` for inputs shaped like `example`; called, it takes up to that many rows.

    At batch 1, launching hundreds of kernels one by one takes longer than they run. The returned tensor is overwritten
    by the next call.
    """
    held = [each.clone() for each in example]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # kernels are chosen and workspaces allocated before the capture
        for _ in range(3):
            function(*held)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        answer = function(*held)

    def replay(*inputs: Tensor) -> Tensor:
        for place, given in zip(held, inputs, strict=True):
            place[: len(given)].copy_(given)
        graph.replay()
        return answer

    return replay


def compiled(function: Program, *example: Tensor) -> Program:
    """`function` by torch.compile for inputs shaped like `example`; called, it takes up to that many rows.

    Takes tens of seconds when it is first called, and a C compiler. The returned tensor may be overwritten by the next
    call.
    """
    held = [each.clone() for each in example]
    mode = CUDA_COMPILE_MODE if held[0].is_cuda else "default"
    # For this shape alone: code for any batch size is slower.
    run: Program = torch.compile(function, mode=mode, dynamic=False, fullgraph=True)

    def call(*inputs: Tensor) -> Tensor:
        for place, given in zip(held, inputs, strict=True):
            place[: len(given)].copy_(given)
        return run(*held)

    return call
