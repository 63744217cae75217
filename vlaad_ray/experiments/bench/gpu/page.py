"""The page of results: figures from the records alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vlaad_ray.deploy.backends.pytorch import CUDA_COMPILE_MODE
from vlaad_ray.experiments.bench.gpu.record import Record
from vlaad_ray.experiments.bench.policy import PAPER
from vlaad_ray.experiments.markdown import markdown_table, wrapped

CHUNK = 5
"""Actions of an answer, all executed: the paper's K."""
VERSIONS = ("torch", "ray", "transformers", "vllm", "mujoco")
COMMAND = "`make gpu` (`vlaad bench gpu`)"


def page(size: str, machine: Mapping[str, Any], records: Sequence[Record], missing: Sequence[str]) -> str:
    """Markdown. `missing`: names of what nobody has tried to measure yet."""
    where = machine["gpu"] or "a CPU"
    made_up = (
        "Weights are random, in their true number and shape: speed does not depend on their values."
        if size == "full"
        else "**Tiny stand-ins, which show that the way works: no figure here says how fast anything is.**"
    )
    blocks = [
        f"# Measured on {where}",
        f"{COMMAND} measures and writes all of this. {made_up} Each measurement is a process of its own.",
        machine_table(machine),
        *revisions(machine, records),
    ]
    good = [each for each in records if each.answer is not None]
    for name, (title, section) in SECTIONS.items():
        if mine := [each for each in good if each.section == name]:
            blocks += [f"## {title}", *section(mine)]
        if name == "teacher":
            blocks += against_teacher(good)
    lines = [f"- {each.name}: {each.problem}" for each in records if each.problem]
    lines += [f"- {each.name}: {line}" for each in good for line in gaps(each)]
    lines += [f"- {name}: not asked for, or not its turn yet" for name in missing]
    if lines:
        blocks += ["## Not measured", "\n".join(lines)]
    return wrapped("\n\n".join(blocks)) + "\n"


def machine_table(machine: Mapping[str, Any]) -> str:
    rows = [["CPU", f"{machine['cpu']}, {machine['cpus']} CPUs"]]
    if machine["gpu"]:
        memory, capability = machine["gpu_memory_gib"], machine["compute_capability"]
        rows.insert(0, ["GPU", f"{machine['gpu']}, {memory:.0f} GiB, compute capability {capability}"])
        rows.insert(1, ["driver; CUDA of torch", f"{machine['driver']}; {machine['cuda']}"])
        rows.insert(2, ["fp32 products in torch", machine["fp32_products"]])
    versions = [f"{name} {machine['versions'][name]}" for name in VERSIONS if name in machine["versions"]]
    rows += [["versions", ", ".join([f"Python {machine['python']}", *versions])]]
    rows += [["git revision", machine["git_revision"] or "unknown"]]
    return markdown_table(["", ""], rows)


def revisions(machine: Mapping[str, Any], records: Sequence[Record]) -> list[str]:
    """A paragraph where earlier runs, of other revisions, have left something."""
    older = [each.name for each in records if each.machine["git_revision"] != machine["git_revision"]]
    return [f"Measured at earlier revisions, as their records say: {', '.join(older)}."] if older else []


def student(records: Sequence[Record]) -> list[str]:
    rows: list[list[str]] = []
    batches: list[list[str]] = []
    for record in records:
        answer, how = record.answer or {}, [record.request["dtype"], record.request["mode"]]
        times = [f"{answer['p50_ms']:.1f}", f"{answer['p99_ms']:.1f}", f"{answer['first_ms'] / 1000:.1f}"]
        rate = answer["inferences_per_second"]
        rows.append([*how, f"**{rate:.1f}**", f"{CHUNK * rate:.0f}", *times, megabytes(answer)])
        batches.append([*how, *(f"{each['inferences_per_second']:.0f}" for each in answer["batches"].values())])
    request = records[0].request
    sizes = records[0].answer["batches"] if records[0].answer else {}
    head = ["precision", "mode", "inferences/s", "actions/s", "p50 ms", "p99 ms", "first call s", "most memory MB"]
    throughput = markdown_table(["precision", "mode", *(f"batch {size}" for size in sizes)], batches)
    return [
        f"Whole `infer`, batch 1, one picture of {request['image_size']} px, {request['calls']} calls; actions a "
        f"second are inferences times K = {CHUNK}. Modes: operation by operation, CUDA graphs, and torch.compile (on "
        f'CUDA mode "{CUDA_COMPILE_MODE}", else the default one; nothing compiled before is reused). {MEMORY} Paper, '
        f"on an RTX 4090: {PAPER['student_hz']} inferences/s, {PAPER['student_mb']} MB.",
        markdown_table(head, rows),
        "Throughput, inferences a second of `infer_batch`:",
        throughput,
    ]


def teacher(records: Sequence[Record]) -> list[str]:
    (record,) = records
    answer = record.answer or {}
    rows = [
        [
            batch,
            f"{1000 * each['latency_p50_s']:.0f}",
            f"**{each['actions_per_s']:.2f}**",
            f"{each['speedup_over_one_by_one']:.2f}",
            f"{each['peak_memory_gib']:.2f}",
        ]
        for batch, each in answer["batches"].items()
        if each is not None
    ]
    return [
        f"{answer['parameters'] / 1e9:.3g} B parameters in {record.request['dtype']}, from prepared pictures to one "
        f"action each, median of {record.request['repeats']} calls. Paper, on an RTX 4090: {PAPER['teacher_hz']} "
        f"actions/s, {PAPER['teacher_mb'] / 1000:.0f} GB.",
        markdown_table(["batch", "p50 ms", "actions/s", "× one by one", "most memory GiB"], rows),
    ]


def against_teacher(records: Sequence[Record]) -> list[str]:
    """A section on student against teacher at batch 1, where there are both."""
    found = [each.answer for each in records if each.section == "teacher" and each.answer is not None]
    students = [each for each in records if each.section == "student" and each.answer is not None]
    if not found or not students or found[0]["batches"].get("1") is None:
        return []
    rows = []
    for record in students:
        answer, request = record.answer or {}, record.request
        times = ratio(answer, found[0])
        rows.append([request["dtype"], request["mode"], f"**{times:.1f}**", f"{CHUNK * times:.0f}"])
    paper = PAPER["student_hz"] / PAPER["teacher_hz"]
    return [
        "## Student against teacher",
        "Batch 1, how many times as fast as OpenVLA in bf16 above, whose pictures were prepared before. Paper: "
        f"{paper:.2f} in inferences.",
        markdown_table(["precision", "mode", "× inferences/s", "× actions/s"], rows),
    ]


def ratio(student_answer: Mapping[str, Any], teacher_answer: Mapping[str, Any]) -> float:
    """Inferences a second at batch 1 of a student by those of the teacher, whose inference is one action."""
    mine: float = student_answer["inferences_per_second"]
    return mine / float(teacher_answer["batches"]["1"]["actions_per_s"])


def training(records: Sequence[Record]) -> list[str]:
    rows = []
    for record in records:
        answer, request = record.answer or {}, record.request
        size = request["image_size"] or {"full": 224, "tiny": 32}[request["preset_size"]]
        rows.append(
            [
                f"{request['student']}, {size} px",
                request["precision"],
                str(answer["batch_size"]),
                f"**{answer['samples_per_second']:.0f}**",
                f"{100 * answer['waiting_share']:.0f} %",
                f"{answer['trainable'] / 1e6:.1f} M",
                megabytes(answer),
            ]
        )
    head = ["student", "precision", "batch", "samples/s", "waits for data", "trained", "most memory MB"]
    return [
        "Random frames in memory, dual_path, LoRA as by default in vlaad_158m; the steps of training itself, the first "
        f"epoch not counted. The GPU waits while a batch is picked, shifted and uploaded. {MEMORY}",
        markdown_table(head, rows),
    ]


def rendering(records: Sequence[Record]) -> list[str]:
    (record,) = records
    answer = record.answer or {}
    rows = [
        [
            str(each["index"]),
            each["renderer"].replace("|", "/"),
            *(f"{each[mode]['pictures_per_second']:.0f}" for mode in ("fast", "exact")),
            *(f"{each[mode]['steps_per_second']:.1f}" for mode in ("fast", "exact")),
        ]
        for each in answer["devices"]
        if not each["problem"]
    ]
    head = ["EGL device", "drawn by", "pictures/s, fast", "exact", "control steps/s, fast", "exact"]
    return [
        f"LIBERO (libero_object, task 0), {answer['cameras']} cameras of {answer['pixels']} px after every control "
        "step, one process. Pictures: drawing and reading back alone; steps: with physics. llvmpipe draws with one "
        "thread, as in our simulators.",
        markdown_table(head, rows),
    ]


def annotation(records: Sequence[Record]) -> list[str]:
    (record,) = records
    answer = record.answer or {}
    rates = {name: each["median"] for name, each in answer["answers_per_second"].items()}
    rows = [
        ["vLLM alone", f"{rates['vllm']:.1f}", "1"],
        ["through Ray Data", f"**{rates['pipeline']:.1f}**", f"{answer['ratio_to_vllm']:.2f}"],
    ]
    shape = "of Qwen2.5-VL-3B's shape" if record.request["size"] == "full" else "(tiny)"
    data = "the dataset given" if record.request["data"] else "synthetic episodes, one picture each"
    return [
        f"A random VLM {shape} in bf16, {answer['measured_questions']} questions on {data}, starts of engines not "
        "counted. Answers of random weights are as long as they may be.",
        markdown_table(["", "answers/s", "ratio"], rows),
    ]


SECTIONS: Mapping[str, tuple[str, Callable[[Sequence[Record]], list[str]]]] = {
    "student": ("The 158 M student", student),
    "teacher": ("OpenVLA-7B", teacher),
    "training": ("Training", training),
    "rendering": ("Rendering", rendering),
    "annotation": ("Annotation by a VLM", annotation),
}
"""What names of measurements begin with -> heading and content, in the page's order."""
MEMORY = "Memory is what torch's tensors took on the GPU at most (of a CPU: what the process held)."


def megabytes(answer: Mapping[str, Any]) -> str:
    return f"{answer.get('peak_gpu_memory_mb', answer['peak_memory_mb']):.0f}"


def gaps(record: Record) -> list[str]:
    """What a measurement that came to its end had to leave out."""
    answer = record.answer or {}
    if record.section == "teacher":
        return [f"batch {size} does not fit the GPU's memory" for size, each in answer["batches"].items() if not each]
    if record.section == "rendering":
        silent = [each for each in answer["devices"] if each["problem"]]
        return [f"EGL device {each['index']} ({each['kind']}): {each['problem']}" for each in silent]
    return []


def headline(record: Record) -> str:
    """The figure that matters most."""
    answer = record.answer or {}
    if record.section == "student":
        return f"{answer['inferences_per_second']:.1f} inferences/s"
    if record.section == "teacher":
        rates = [f"{each['actions_per_s']:.2f} (batch {size})" for size, each in answer["batches"].items() if each]
        return f"actions/s {', '.join(rates)}"
    if record.section == "training":
        return f"{answer['samples_per_second']:.0f} samples/s"
    if record.section == "rendering":
        drawn = [each for each in answer["devices"] if not each["problem"]]
        return ", ".join(f"{each['fast']['pictures_per_second']:.0f} pictures/s {each['renderer']}" for each in drawn)
    return f"{answer['answers_per_second']['pipeline']['median']:.1f} answers/s"
