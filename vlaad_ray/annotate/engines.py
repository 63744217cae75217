"""Answers from vLLM engines of our own, through Ray Data LLM; and the rows in which questions and answers travel.

A server (chat_server) takes the same rows and gives back the same rows, so nothing else knows which of the two is at
work.
"""

from __future__ import annotations

import base64
import functools
import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from PIL import Image

from vlaad_ray import store
from vlaad_ray.annotate import kinds, windows
from vlaad_ray.annotate.replies import Reply, failure
from vlaad_ray.annotate.windows import Window
from vlaad_ray.configs import Location, UserError, VlmConfig, location
from vlaad_ray.files import Part, sha256
from vlaad_ray.runtime.nodes import fitted
from vlaad_ray.runtime.placement import Processes, divide

ENGINE_CPUS = 1
"""Reserved for each process of an engine."""
QUIET = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "ERROR"),
    "PYTHONWARNINGS": "ignore",
}
CACHED_EPISODES = 4
SAMPLE = 2**20
"""Bytes of each weights file that a model's revision is taken from, at both ends."""


@dataclass(frozen=True)
class Engine:
    """Resources and limits of vLLM, for one kind of machine."""

    model: str
    gpus: int
    """0 or 1 for each worker process."""
    replicas: int = 1
    tensor_parallel: int = 1
    batch_size: int = 64
    max_num_seqs: int = 128
    dtype: str = "bfloat16"
    gpu_memory: float = 0.9
    max_model_len: int = 4096
    eager: bool = False
    environment: tuple[tuple[str, str], ...] = ()


def presets() -> dict[str, Engine]:
    """By name of the machine. A 7B model in bf16 takes 17 GB, a 3B one 8 GB; pictures of 224 px take 64 tokens each."""
    small, large = "Qwen/Qwen2.5-VL-3B-Instruct", "Qwen/Qwen2.5-VL-7B-Instruct"
    return {
        # One process: it starts in a fifth of the time. vLLM's own binding of threads to cores fails under Ray.
        "cpu": Engine(
            model=small,
            gpus=0,
            batch_size=16,
            max_num_seqs=16,
            eager=True,
            environment=(
                ("VLLM_ENABLE_V1_MULTIPROCESSING", "0"),
                ("VLLM_CPU_KVCACHE_SPACE", "1"),
                ("VLLM_CPU_OMP_THREADS_BIND", "nobind"),
            ),
        ),
        "gpu-24gb": Engine(model=small, gpus=1),
        "gpu-80gb": Engine(model=large, gpus=1, max_num_seqs=256, batch_size=128),
        "gpu-8x80gb": Engine(model=large, gpus=1, replicas=8, max_num_seqs=256, batch_size=128),
    }


def resolve(config: VlmConfig) -> Engine:
    """The preset, with what the user set put over it. Needs Ray to be connected."""
    name = config.preset
    if name == "auto":
        name = "gpu-24gb" if ray.cluster_resources().get("GPU", 0) >= 1 else "cpu"
    given = ("replicas", "tensor_parallel", "batch_size", "max_num_seqs", "dtype", "gpu_memory", "max_model_len")
    changes: dict[str, Any] = {field: getattr(config, field) for field in given if getattr(config, field) is not None}
    if config.model:
        changes["model"] = config.model
    engine = replace(presets()[name], **changes)
    if engine.gpus:
        return engine
    return replace(engine, environment=(*engine.environment, ("OMP_NUM_THREADS", str(_threads(engine.replicas)))))


def processes(engine: Engine) -> Processes:
    """What vLLM's processes ask of the nodes."""
    advice = "lower --replicas or --tensor-parallel, or choose another --preset"
    return Processes("engine", engine.replicas * engine.tensor_parallel, ENGINE_CPUS, engine.gpus, advice=advice)


def _threads(replicas: int) -> int:
    """Threads of an engine on CPUs. Ray would give it one, for the one CPU that its actor reserves."""
    nodes = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    return max(1, min(min((cpus for cpus in nodes if cpus), default=1), sum(nodes) // replicas))


def model_revision(model: str, config: VlmConfig) -> str:
    """What identifies the weights: for a directory a hash of its config and each weight file's header, size and end."""
    directory = Path(model)
    if config.server or not directory.exists():
        return f"{model}@{config.revision or 'main'}"
    if not (directory / "config.json").is_file() or not (weights := sorted(directory.glob("*.safetensors"))):
        raise UserError(f"--model: {model} holds no checkpoint (config.json and *.safetensors); check the directory")
    pieces: list[bytes | Location | Part] = [directory / "config.json"]
    for path in weights:
        size = path.stat().st_size
        pieces += [Part(path, 0, SAMPLE), str(size).encode(), Part(path, max(0, size - SAMPLE), SAMPLE)]
    return f"{directory.name}@{sha256(*pieces)[:12]}"


# -------------------------------------------------------------------------------------------------------------- rows


def request_row(request: str, path: Location, window: Window, instruction: str) -> dict[str, Any]:
    """A question as a row of a Ray dataset: scalars only, since Arrow changes nested dicts."""
    question = {**vars(window), "frames": list(window.frames), "instruction": instruction}
    return {"request": request, "path": str(path), "question": json.dumps(question)}


def read_question(row: Mapping[str, Any]) -> tuple[Window, str]:
    fields = json.loads(row["question"])
    instruction = fields.pop("instruction")
    return Window(**{**fields, "frames": tuple(fields["frames"])}), instruction


def prompt(row: Mapping[str, Any], config: VlmConfig) -> tuple[list[dict[str, Any]], str]:
    """A question's row -> chat messages with pictures inside, and the JSON schema of its answer."""
    window, instruction = read_question(row)
    stored = _pictures(location(row["path"]))
    pictures = [picture_uri(stored[step], config.picture_pixels) for step in window.frames]
    return kinds.messages(window, instruction, pictures, config.frame), kinds.schema(window.kind, config.frame)


def picture_uri(data: bytes, pixels: int) -> str:
    """An encoded picture as a data URI, enlarged to `pixels` on its shorter side when it is smaller."""
    picture = Image.open(io.BytesIO(data))
    short = min(picture.size)
    if short < pixels:
        size = (round(picture.width * pixels / short), round(picture.height * pixels / short))
        buffer = io.BytesIO()
        picture.convert("RGB").resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=store.JPEG_QUALITY)
        data = buffer.getvalue()
    kind = "png" if data.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


@functools.lru_cache(maxsize=CACHED_EPISODES)  # questions come episode by episode
def _pictures(path: Location) -> dict[int, bytes]:
    return store.read_pictures(path)


def answer_row(row: Mapping[str, Any], reply: Reply) -> dict[str, Any]:
    """What came of a question: the fields of a Reply beside its request."""
    return {"request": row["request"], **vars(reply)}


# ----------------------------------------------------------------------------------------------------------- engines


def processor(config: VlmConfig, engine: Engine, temperature: float, max_tokens: int) -> Any:
    """Rows of request_row -> rows of answer_row, through vLLM, as a function of Ray datasets."""
    # vLLM and Ray's LLM stages take seconds to import, and annotating by rules needs neither.
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    fitted(lambda nodes: divide(nodes, processes(engine)), processes(engine), config.wait_for_nodes_s)
    light = {"enabled": True, "num_cpus": 0.1}
    processor_config = vLLMEngineProcessorConfig(
        model_source=engine.model,
        batch_size=engine.batch_size,
        concurrency=(engine.replicas, engine.replicas),
        # One bad question must not stop the others; it comes back with its error instead.
        should_continue_on_error=True,
        runtime_env={"env_vars": {**QUIET, **dict(engine.environment)}},
        accelerator_type=None,
        log_engine_metrics=False,
        # Pictures are processed once a request counts as pending. Ray's default, a tenth more than the engine works on,
        # leaves the engine short whenever several answers end at once.
        max_pending_requests=4 * engine.max_num_seqs,
        placement_group_config={"bundle_per_worker": {"CPU": ENGINE_CPUS, "GPU": engine.gpus}},
        engine_kwargs={**({"revision": config.revision} if config.revision else {}), **engine_kwargs(engine)},
        prepare_multimodal_stage={
            **light,
            "model_config_kwargs": {"dtype": engine.dtype, "max_model_len": engine.max_model_len},
            "chat_template_content_format": "openai",
        },
        chat_template_stage=light,
        tokenize_stage={"enabled": False},
        detokenize_stage={"enabled": False},
    )
    # No seed in sampling: on CPUs vLLM's engine dies of it.
    sampling = {"temperature": temperature, "max_tokens": max_tokens}

    def preprocess(row: dict[str, Any]) -> dict[str, Any]:
        messages, schema = prompt(row, config)
        return {
            "request": row["request"],
            "messages": messages,
            # The schema as text: as a dict Arrow would give it the fields of every other schema, too.
            "sampling_params": {**sampling, "structured_outputs": {"json": schema}},
        }

    def postprocess(row: dict[str, Any]) -> dict[str, Any]:
        tokens = row["num_input_tokens"], row["num_generated_tokens"]
        return answer_row(row, Reply(row["generated_text"], "", "", int(tokens[0]), int(tokens[1])))

    through_vllm = build_processor(
        processor_config,
        preprocess=preprocess,
        postprocess=postprocess,
        preprocess_map_kwargs={"num_cpus": 0.5},
        postprocess_map_kwargs={"num_cpus": 0.1},
    )
    return lambda questions: through_vllm(questions).map(_only_answer, num_cpus=0.1)


def engine_kwargs(engine: Engine) -> dict[str, Any]:
    """What vLLM's own constructor takes."""
    return {
        "dtype": engine.dtype,
        "tensor_parallel_size": engine.tensor_parallel,
        "max_model_len": engine.max_model_len,
        "max_num_seqs": engine.max_num_seqs,
        "enforce_eager": engine.eager,
        **({"gpu_memory_utilization": engine.gpu_memory} if engine.gpus else {}),
        "seed": 0,
        "limit_mm_per_prompt": {"image": windows.KEY_FRAMES, "video": 0},
        # xgrammar lets control characters through in patterns; blanks would eat up the tokens of a weak model.
        "structured_outputs_config": {"backend": "guidance", "disable_any_whitespace": True},
    }


def _only_answer(row: dict[str, Any]) -> dict[str, Any]:
    """Rows whose inference failed skip the postprocessing: give them the form of the others."""
    error = row.get("__inference_error__") or ""
    if error:
        return answer_row(row, failure(error, "engine error"))
    return {name: row[name] for name in ("request", *Reply.__dataclass_fields__)}
