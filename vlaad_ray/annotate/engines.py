"""Where answers come from: vLLM engines of our own through Ray Data LLM, or an OpenAI-compatible server that runs.

Either takes the same rows and gives back the same rows, so nothing else knows which of the two is at work.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import io
import json
import logging
import os
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
import ray.data
from PIL import Image

from vlaad_ray import store
from vlaad_ray.annotate import prompts, windows
from vlaad_ray.annotate.windows import Window
from vlaad_ray.configs import Location, UserError, VlmConfig

CAMERA = "agentview"
SERVER_RETRIES, SERVER_BACK_OFF_S = 3, 1.0
"""Of one request that a server refuses as overloaded or drops; waits double."""
BATCHES_AN_ACTOR = 4
"""Ray Data's default for asynchronous functions."""
SERVER_TIMEOUT_S = 300
QUIET = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "ERROR"),
    "PYTHONWARNINGS": "ignore",
}
CACHED_EPISODES = 4


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
    digest = hashlib.sha256((directory / "config.json").read_bytes())
    for path in weights:
        with path.open("rb") as file:
            digest.update(file.read(1 << 20))
            size = file.seek(0, os.SEEK_END)
            digest.update(str(size).encode())
            file.seek(max(0, size - (1 << 20)))
            digest.update(file.read())
    return f"{directory.name}@{digest.hexdigest()[:12]}"


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
    stored = _pictures(Path(row["path"]))
    pictures = [picture_uri(stored[step], config.picture_pixels) for step in window.frames]
    return prompts.messages(window, instruction, pictures, config.frame), prompts.schema(window.kind, config.frame)


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
    return store.read_pictures(path, CAMERA)


def answer_row(row: Mapping[str, Any], text: str, error: str, prompt_tokens: int, generated: int) -> dict[str, Any]:
    """error: why there is no text. generated: number of tokens in it."""
    return {
        "request": row["request"],
        "text": text,
        "error": error,
        "prompt_tokens": int(prompt_tokens),
        "generated_tokens": int(generated),
    }


# ----------------------------------------------------------------------------------------------------------- engines


def ask(rows: Sequence[dict[str, Any]], config: VlmConfig, engine: Engine, attempt: int) -> Iterator[dict[str, Any]]:
    """Every question's answer_row, in any order, as they come. attempt: 0, or the number of the retry."""
    temperature = config.temperature + 0.4 * attempt
    max_tokens = config.max_tokens * (1 + attempt)  # an answer that was cut off gets more room
    blocks = max(1, min(len(rows), -(-len(rows) // engine.batch_size)))
    questions = ray.data.from_items(list(rows), override_num_blocks=blocks)
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    build = _server_processor if config.server else _vllm_processor
    return iter(build(config, engine, temperature, max_tokens)(questions).iter_rows())


def _vllm_processor(config: VlmConfig, engine: Engine, temperature: float, max_tokens: int) -> Any:
    # vLLM and Ray's LLM stages take seconds to import, and annotating by rules needs neither.
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

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
        placement_group_config={"bundle_per_worker": {"CPU": 1, "GPU": engine.gpus}},
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
        return answer_row(row, row["generated_text"], "", row["num_input_tokens"], row["num_generated_tokens"])

    processor = build_processor(
        processor_config,
        preprocess=preprocess,
        postprocess=postprocess,
        preprocess_map_kwargs={"num_cpus": 0.5},
        postprocess_map_kwargs={"num_cpus": 0.1},
    )
    return lambda questions: processor(questions).map(_only_answer, num_cpus=0.1)


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
        return answer_row(row, "", error, 0, 0)
    return {name: row[name] for name in ("request", "text", "error", "prompt_tokens", "generated_tokens")}


def _server_processor(config: VlmConfig, engine: Engine, temperature: float, max_tokens: int) -> Any:
    from ray.data.llm import HttpRequestProcessorConfig, build_processor

    key = os.environ.get("OPENAI_API_KEY", "")
    processor_config = HttpRequestProcessorConfig(
        url=f"{config.server.rstrip('/')}/chat/completions",
        headers={"Authorization": f"Bearer {key}"} if key else None,
        # The stage sends the requests of a batch one after another, and an actor works on BATCHES_AN_ACTOR batches at a
        # time: so batches of one, and as many actors as give the concurrency.
        batch_size=1,
        concurrency=(1, -(-config.server_concurrency // BATCHES_AN_ACTOR)),
        session_factory=_TextPayloadSession,
        max_retries=SERVER_RETRIES,
        base_retry_wait_time_in_s=SERVER_BACK_OFF_S,
        http_request_stage={"enabled": True, "num_cpus": 0.05},
    )

    def preprocess(row: dict[str, Any]) -> dict[str, Any]:
        messages, schema = prompt(row, config)
        payload = {
            "model": engine.model,
            "messages": messages,
            "temperature": temperature,
            "max_tokens": max_tokens,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "answer", "schema": json.loads(schema), "strict": True},
            },
        }
        return {"request": row["request"], "payload": json.dumps(payload)}

    def postprocess(row: dict[str, Any]) -> dict[str, Any]:
        response = row["http_response"]
        if not response.get("choices"):
            return answer_row(row, "", f"server: {json.dumps(response)[:200]}", 0, 0)
        usage = response.get("usage") or {}
        text = response["choices"][0]["message"].get("content") or ""
        return answer_row(row, text, "", usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0)

    return build_processor(
        processor_config,
        preprocess=preprocess,
        postprocess=postprocess,
        preprocess_map_kwargs={"num_cpus": 0.5},
        postprocess_map_kwargs={"num_cpus": 0.1},
    )


class _TextPayloadSession:
    """The HTTP session of Ray's stage, for payloads that are JSON text already.

    As dicts they would pass through Arrow, which gives each the fields of all others; and the stage turns what it gets
    into JSON, hence the way back here.
    """

    async def __aenter__(self) -> _TextPayloadSession:
        import aiohttp

        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=SERVER_TIMEOUT_S))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    def post(self, url: str, headers: Mapping[str, str], data: str) -> Any:
        return self._session.post(url, headers=headers, data=json.loads(data))


def check_server(config: VlmConfig, model: str) -> None:
    """Ask the server once for its models, so that a wrong URL, key or model is told before any work. UserError."""
    url = f"{config.server.rstrip('/')}/models"
    key = os.environ.get("OPENAI_API_KEY", "")
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"} if key else {})
    try:
        with contextlib.closing(urllib.request.urlopen(request, timeout=30)) as response:
            known = [entry["id"] for entry in json.loads(response.read())["data"]]
    except urllib.error.HTTPError as error:
        hint = "; set OPENAI_API_KEY" if error.code in (401, 403) else ""
        raise UserError(f"--server: {url} answers {error.code} {error.reason}{hint}") from None
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"--server: {url} does not answer like an OpenAI-compatible server: {error}") from None
    if model not in known:
        raise UserError(f"--model: the server at {config.server} does not know {model!r}; it has {', '.join(known)}")
