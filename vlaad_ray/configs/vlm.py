"""The VLM that annotates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from vlaad_ray.configs.bounds import above, at_least, between
from vlaad_ray.configs.common import WAIT_FOR_NODES_S
from vlaad_ray.configs.places import Location


@dataclass(frozen=True)
class VlmConfig:
    """The VLM that annotates, what it is asked, and what is done with answers that the robot's motion contradicts."""

    model: str = ""
    """Directory of a checkpoint, or its name on the hub: any VLM that vLLM serves. Empty: the preset's Qwen2.5-VL."""
    revision: str = ""
    """Revision on the hub; a directory is identified by its content."""
    preset: Literal["auto", "cpu", "gpu-24gb", "gpu-80gb", "gpu-8x80gb"] = "auto"
    """Engine settings for a kind of machine; auto: gpu-24gb if the cluster has a GPU, else cpu."""
    replicas: Annotated[int | None, at_least(1)] = None
    """Engines side by side. None, here and below: the preset's."""
    tensor_parallel: Annotated[int | None, at_least(1)] = None
    """GPUs (or CPU processes) that share one engine."""
    batch_size: Annotated[int | None, at_least(1)] = None
    """Rows that Ray Data hands to an engine at once; the engine batches continuously within and across them."""
    max_num_seqs: Annotated[int | None, at_least(1)] = None
    """Answers that an engine generates at the same time."""
    dtype: str | None = None
    gpu_memory: Annotated[float | None, above(0, up_to=1)] = None
    """Fraction of each GPU's memory for weights and KV cache."""
    max_model_len: Annotated[int | None, at_least(1)] = None
    """Tokens of prompt (pictures included) and answer together."""
    wait_for_nodes_s: Annotated[float, at_least(0)] = WAIT_FOR_NODES_S
    """Longest wait for a node that the autoscaler may bring, when the engines fit none. Without one nothing waits."""
    server: str = ""
    """URL of an OpenAI-compatible server that already runs, as http://127.0.0.1:8000/v1, instead of an engine of ours;
    then --model is the name that the server knows. Its key is read from the environment variable OPENAI_API_KEY."""
    server_concurrency: Annotated[int, at_least(1)] = 16
    """Requests that are open at the server at the same time."""
    every: Annotated[int, at_least(0)] = 0
    """Ask for a description every n-th frame; 0: once a segment; 1: every frame, as the paper does."""
    moving: bool = False
    """Ask for element and direction of every segment in which the hand moves, not only of operating ones."""
    frame: Literal["viewer", "base"] = "viewer"
    """Whose left and right the VLM is asked for: the picture's, or the robot's. Stored in the robot's either way."""
    picture_pixels: Annotated[int, at_least(1)] = 224
    """Pictures smaller than this are enlarged before they are shown."""
    max_tokens: Annotated[int, at_least(1)] = 96
    """Longest answer."""
    temperature: Annotated[float, between(0, 2)] = 0.0
    """Of the first try; a retry raises it by 0.4, since the same question would get the same malformed answer."""
    max_retries: Annotated[int, at_least(0)] = 2
    """Times a malformed or failed answer is asked for again before the frames keep their rule label, flagged."""
    on_contradiction: Literal["replace", "drop", "keep"] = "replace"
    """replace: the rule label takes the place of a contradicted one. drop: no description for these frames.
    keep: the VLM's words stay. Frames are flagged each time."""
    decisions: Location | None = None
    """JSON exported from the contact sheet: a person's accepted and rejected answers, which overrule the audit."""
    sheet: Annotated[int, at_least(0)] = 40
    """Answers on the contact sheet: this many of the worst contradictions, and as many drawn at random from all.
    0: no sheet."""
