"""How near annotation comes to vLLM's own speed, and how many questions a thousand frames take.

The baseline is vLLM's offline `LLM.chat` with the same engine settings on the same prompts, in a process of its own, in
turn with the pipeline. Both are measured in steady state: the start of an engine is not counted.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from typing import Any

from rich.table import Table

from vlaad_ray import store
from vlaad_ray.annotate import asking, engines, questions
from vlaad_ray.annotate.engines import Engine
from vlaad_ray.annotate.questions import Work
from vlaad_ray.configs import AnnotateConfig, BenchAnnotateConfig, Location, UserError
from vlaad_ray.files import local_copy, replacing_directory
from vlaad_ray.runtime import cli, cluster
from vlaad_ray.runtime.record import begin, software, write_run_record

EVERY_QUESTION = 10**6
"""More tries than any answer has had: whatever is planned counts as open."""

EPISODES = 150
"""Of the dataset at most, spread over it: planning the questions of more takes longer than asking them."""


BATCHES_IN_FLIGHT = 8
"""Ray Data LLM's own bound on batches that an engine has at once: so many finish in any order."""


def bench_annotate(config: BenchAnnotateConfig) -> dict[str, Any]:
    """Questions a thousand frames, and answers a second against vLLM's own."""
    begin(config.out, config, {"--data": config.data})
    write_run_record(config.out, config)
    cluster.connect()
    paths = store.list_episodes(config.data)
    paths = paths[:: max(1, math.ceil(len(paths) / EPISODES))]
    engine = engines.resolve(config.vlm)
    if config.vlm.model:
        return _bench(config, engine, paths)
    with local_copy(random_model(config.out / "random_vlm")) as model:
        return _bench(config, replace(engine, model=str(model)), paths)


def _bench(config: BenchAnnotateConfig, engine: engines.Engine, paths: Sequence[Location]) -> dict[str, Any]:
    works = plan(paths, config, every=0)
    frames = sum(work.frames for work in works)
    calls = sum(len(work.open(EVERY_QUESTION)) for work in works)
    per_frame = sum(len(work.open(EVERY_QUESTION)) for work in plan(paths, config, every=1))
    rows = [
        engines.request_row(request, work.path, work.questions[request], work.instruction)
        for work in works
        for request in work.open(EVERY_QUESTION)
    ]
    rows = rows[: config.questions]
    if len(rows) < 4 * BATCHES_IN_FLIGHT * engine.batch_size:
        raise UserError(
            f"--data: {config.data} gives {len(rows)} questions (--questions {config.questions}), too few to reach a "
            f"steady state with {BATCHES_IN_FLIGHT} batches of {engine.batch_size} in flight; collect more episodes or "
            "lower --batch-size"
        )
    rates: dict[str, list[float]] = {"vllm": [], "pipeline": []}
    with cli.progress("bench annotate", 2 * config.repeats) as advance:
        for _ in range(config.repeats):
            rates["vllm"].append(offline_rate(rows, config, engine))
            advance(f"vLLM alone {rates['vllm'][-1]:.1f} answers/s")
            rates["pipeline"].append(pipeline_rate(rows, config, engine))
            advance(f"through Ray Data {rates['pipeline'][-1]:.1f} answers/s")
    medians = {name: statistics.median(values) for name, values in rates.items()}
    summary = {
        "model": engines.model_revision(engine.model, config.vlm),
        "frames": frames,
        "questions_per_1000_frames": {"default": 1000 * calls / frames, "per_frame": 1000 * per_frame / frames},
        "questions_ratio": calls / per_frame,
        "measured_questions": len(rows),
        "answers_per_second": {name: {"median": medians[name], "all": rates[name]} for name in rates},
        "ratio_to_vllm": medians["pipeline"] / medians["vllm"],
        **software(),
    }
    store.write_json(config.out / "summary.json", summary)
    return summary


def plan(paths: Sequence[Location], config: BenchAnnotateConfig, every: int) -> list[Work]:
    """The questions on every episode, nothing of which has been answered."""
    vlm = replace(config.vlm, every=every)
    never_written = config.out / "no_answers"
    works, _ = questions.plan(paths, AnnotateConfig(data=config.data, out=never_written, vlm=vlm), "bench")
    return works


def pipeline_rate(rows: Sequence[dict[str, Any]], config: BenchAnnotateConfig, engine: Engine) -> float:
    """Answers a second in the steady state.

    Answers come by the batch, and all batches in flight share the engine: as many as these hold are left out at either
    end, where batches finish together or the engine runs empty.
    """
    arrived = []
    for row in asking.ask(rows, config.vlm, engine, attempt=0):
        if row["problem"]:
            raise RuntimeError(f"the engine failed on a question of the benchmark: {row['text']}")
        arrived.append(time.monotonic())
    edge = BATCHES_IN_FLIGHT * engine.batch_size
    first, last = edge - 1, len(arrived) - edge - 1
    return (last - first) / (arrived[last] - arrived[first])


def offline_rate(rows: Sequence[dict[str, Any]], config: BenchAnnotateConfig, engine: Engine) -> float:
    """Answers a second of vLLM's offline interface, pictures and prompts prepared beforehand."""
    prompts = [engines.prompt(row, config.vlm) for row in rows]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_chat, prompts, config.vlm.max_tokens, config.vlm.temperature, engine).result()


def _chat(
    prompts: Sequence[tuple[list[dict[str, Any]], str]], max_tokens: int, temperature: float, engine: Engine
) -> float:
    os.environ.update({"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING", **dict(engine.environment)})
    from vllm import LLM, SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    llm = LLM(model=engine.model, **engines.engine_kwargs(engine))
    conversations = [messages for messages, _ in prompts]
    sampling = [
        SamplingParams(
            temperature=temperature,
            max_tokens=max_tokens,
            structured_outputs=StructuredOutputsParams(json=json.loads(schema)),
        )
        for _, schema in prompts
    ]
    warm = engine.batch_size
    llm.chat(conversations[:warm], sampling[:warm], use_tqdm=False)
    began = time.monotonic()
    llm.chat(conversations[warm:], sampling[warm:], use_tqdm=False)
    return (len(prompts) - warm) / (time.monotonic() - began)


def random_model(directory: Location) -> Location:
    """A Qwen2.5-VL with random weights, large enough that its engine, not what surrounds it, sets the pace on CPUs."""
    from vlaad_ray.annotate.random_checkpoint import Size, write_checkpoint

    if not (directory / "config.json").exists():
        with replacing_directory(directory, "config.json") as folder:
            write_checkpoint(folder, Size(width=768, depth=12, vision_width=384, vision_depth=12))
    return directory


def show(summary: dict[str, Any]) -> Table:
    table = Table(title=f"Annotation by {summary['model']}", title_justify="left")
    for column in ("", "answers/s", "ratio"):
        table.add_column(column, justify="right")
    rate = {name: each["median"] for name, each in summary["answers_per_second"].items()}
    table.add_row("vLLM alone", f"{rate['vllm']:.1f}", "1")
    table.add_row("through Ray Data", f"{rate['pipeline']:.1f}", f"{summary['ratio_to_vllm']:.2f}")
    asked = summary["questions_per_1000_frames"]
    table.caption = (
        f"questions a thousand frames: {asked['default']:.0f} by segment, {asked['per_frame']:.0f} by frame "
        f"(ratio {summary['questions_ratio']:.3f})"
    )
    return table
