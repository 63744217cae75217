"""How much the audit sees: a server lies at known rates, and the verdicts are held against its ledger."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from vlaad_ray import files, stats, store
from vlaad_ray.annotate import annotate, engines, questions, rules
from vlaad_ray.annotate.questions import Work
from vlaad_ray.annotate.windows import span
from vlaad_ray.configs import AnnotateConfig, BenchAuditConfig, Location, VlmConfig
from vlaad_ray.experiments.bench import liar
from vlaad_ray.experiments.bench.liar import Liar, Truth
from vlaad_ray.runtime import cluster
from vlaad_ray.runtime.record import begin, software, write_run_record
from vlaad_ray.semantics import directions


def bench_audit(config: BenchAuditConfig) -> dict[str, Any]:
    """Detection, false alarms and estimated rate of contradictions, for each rate of lies."""
    begin(config.out, config, {"--data": config.data})
    write_run_record(config.out, config)
    cluster.connect()
    runs = {f"{rate:g}": measure(rate, config) for rate in config.rates}
    summary = {"rates": runs, "data": str(config.data), "seed": config.seed, **software()}
    store.write_json(config.out / "summary.json", summary)
    return summary


def measure(rate: float, config: BenchAuditConfig) -> dict[str, Any]:
    """Annotate the dataset once, with a server of which `rate` per cent of the answers are lies."""
    out = config.out / f"rate{rate:g}"
    files.remove_tree(out)  # a ledger is of one run: old answers would have none
    vlm = VlmConfig(model=liar.MODEL, server="unknown", moving=True, on_contradiction="keep")
    annotation = AnnotateConfig(data=config.data, out=out, annotator="vlm", vlm=vlm)
    truths, requests = know(store.list_episodes(config.data), annotation)
    server = Liar(truths, rate / 100, vlm.frame, config.seed)
    with liar.serve(server) as url:
        annotate(dataclasses.replace(annotation, vlm=dataclasses.replace(vlm, server=url)))
    lies = {requests[question]: lie for question, lie in server.ledger.items()}
    rows = store.read_audit(out)
    return {
        "all": score(rows, lies),
        "direct": score([row for row in rows if row["kind"] == "direct"], lies),
        "describe": score([row for row in rows if row["kind"] == "describe"], lies),
    }


def know(paths: Sequence[Location], config: AnnotateConfig) -> tuple[dict[str, Truth], dict[str, str]]:
    """Question's digest -> the truth about it, and -> the request under which its answer is stored."""
    truths: dict[str, Truth] = {}
    requests: dict[str, str] = {}
    works, _ = questions.plan(paths, config, engines.model_revision(liar.MODEL, config.vlm))
    for work in works:
        for request, (question, truth) in _questions(work, config.vlm).items():
            truths[question], requests[question] = truth, request
    return truths, requests


def _questions(work: Work, vlm: VlmConfig) -> dict[str, tuple[str, Truth]]:
    episode = store.read_episode(work.path, images=False)
    subtasks = directions.subtasks_by_frame(rules.nine_phases(episode), episode.instruction)
    found = {}
    for request, window in work.questions.items():
        if window.frames:
            messages, _ = engines.prompt(engines.request_row(request, work.path, window, work.instruction), vlm)
            truth = Truth(window, span(episode.proprio, window.first, window.last), subtasks[window.first])
            found[request] = liar.digest(messages), truth
    return found


def score(rows: Sequence[Mapping[str, Any]], lies: Mapping[str, str | None]) -> dict[str, Any]:
    """Verdicts against the ledger. Rows: request, verdict."""
    told = [row for row in rows if lies[row["request"]] is not None]
    true = [row for row in rows if lies[row["request"]] is None]
    kinds = Counter(lies[row["request"]] for row in told)
    found = Counter(lies[row["request"]] for row in told if row["verdict"] == "contradict")
    alarms = sum(row["verdict"] == "contradict" for row in true)
    decided = [row for row in rows if row["verdict"] != "undecidable"]
    contradicted = sum(row["verdict"] == "contradict" for row in decided)
    return {
        "windows": len(rows),
        "lies": len(told),
        "found": sum(found.values()),
        "detection": sum(found.values()) / len(told) if told else None,
        "by_kind": {kind: {"lies": kinds[kind], "found": found[kind]} for kind in sorted(map(str, kinds))},
        "false_alarms": alarms,
        "false_alarm_rate": alarms / len(true) if true else None,
        "undecidable": len(rows) - len(decided),
        "true_rate": len(told) / len(rows),
        "estimated_rate": contradicted / len(decided),
        "estimate_wilson95": stats.wilson(contradicted, len(decided)),
    }


def show(summary: dict[str, Any]) -> Table:
    table = Table(title="What the audit sees of a server that lies", title_justify="left")
    for column in ("lies, %", "windows", "lies found", "false alarms", "true rate", "estimated [95 % Wilson]"):
        table.add_column(column, justify="right")
    for rate, run in summary["rates"].items():
        for name, each in run.items():
            low, high = each["estimate_wilson95"]
            table.add_row(
                f"{rate} ({name})",
                str(each["windows"]),
                f"{each['found']}/{each['lies']}",
                f"{each['false_alarms']} of {each['windows'] - each['lies']}",
                f"{100 * each['true_rate']:.1f}",
                f"{100 * each['estimated_rate']:.1f} [{100 * low:.1f}, {100 * high:.1f}]",
            )
    kinds: Counter[str] = Counter()
    found: Counter[str] = Counter()
    for run in summary["rates"].values():
        for kind, each in run["all"]["by_kind"].items():
            kinds[kind] += each["lies"]
            found[kind] += each["found"]
    table.caption = "found by kind: " + ", ".join(f"{kind} {found[kind]}/{count}" for kind, count in kinds.items())
    return table
