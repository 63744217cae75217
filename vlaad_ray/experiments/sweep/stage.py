"""The stage: annotate what the trials need, let Ray Tune run them, write what was found. A sweep's directory:

OUT/config.json    resolved config and versions       OUT/trials.md, trials.png   table, parallel coordinates
OUT/best.json      for jobs/train.py --config          OUT/summary.json            written last: the sweep is complete
OUT/trials/NAME/   each trial's run (and tuning/, its closed-loop evaluation)
OUT/annotations/   by number of phases                 OUT/frames/                 decoded pictures, for all trials
OUT/tune/          Ray Tune's own: TensorBoard's logs, and pickled state to restore from (trust it as you do code)
"""

from __future__ import annotations

import dataclasses
import importlib.util
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import tune
from ray.tune import Callback, ResultGrid
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.search.basic_variant import BasicVariantGenerator
from ray.util.placement_group import PlacementGroup, PlacementGroupID, remove_placement_group

from vlaad_ray import annotate, store
from vlaad_ray.configs import AnnotateConfig, Location, SweepConfig, UserError, content, parse_range
from vlaad_ray.experiments.sweep import plot, results
from vlaad_ray.experiments.sweep.space import Axis, domains, read_axes
from vlaad_ray.experiments.sweep.trial import DEFAULT_PHASES, run_trial, trial_config, trial_name
from vlaad_ray.rollout.fleet import actor_count
from vlaad_ray.runtime import cli, cluster, places
from vlaad_ray.runtime.nodes import fitted
from vlaad_ray.runtime.placement import Processes, divide_groups
from vlaad_ray.runtime.record import begin, software, write_run_record
from vlaad_ray.train import prepare
from vlaad_ray.train import stage as train
from vlaad_ray.train.distributed import PLACEMENT_GROUP
from vlaad_ray.train.workers import SPARE_CPUS

if TYPE_CHECKING:  # Optuna is there for those who search with it
    from optuna.storages import BaseStorage

TRIAL_CPUS = 0.001
"""A trial's own actor only waits for its training workers: of what these leave, and so never on a head without CPUs."""
METRIC = "validation/near"


def sweep(config: SweepConfig) -> dict[str, Any]:
    """Run the sweep, or what is left of it, or show it if it is finished; return (and write) the summary."""
    places.check(config)
    config = replace(config, train=prepare.complete(config.train))
    begin(config.out, config, prepare.reads(config.train))
    axes = read_axes(config)
    check(config)
    identity = {**content(config), "data": config.train.data, "annotations": config.train.annotations}
    summary_path = config.out / "summary.json"
    if (config.out / "run.json").exists():
        train.refuse_other_run(config.out, identity)
    if summary_path.exists() and not store.read_json(summary_path)["counts"]["failed"]:
        return dict(store.read_json(summary_path))
    check_tuning_split(config)
    write_run_record(config.out, config)
    store.write_json(config.out / "run.json", identity)
    began = time.monotonic()
    cluster.connect()
    annotations = annotate_taxonomies(config, axes)
    spread_out = spread(config)
    found = run_trials(spread_out, axes, annotations)
    trials = [read_trial(found[number]) for number in range(len(found))]
    summary = {
        **results.summarise(trials, config.goal),
        "search": config.search,
        "space": dataclasses.asdict(config.space),
        "early_stopping": config.early_stopping,
        "concurrent": spread_out.concurrent,
        "warnings": warnings(axes, config),
        "best_config": str(config.out / "best.json"),
        "seconds": round(time.monotonic() - began, 1),
        **software(),
    }
    if summary["best"] is None:
        errors = [trial.error for trial in trials if trial.error] or ["stopped before any was finished"]
        raise UserError(f"none of {len(trials)} trials finished ({errors[0]}); mend that and rerun the same command")
    write(config, annotations, summary)
    return summary


def check(config: SweepConfig) -> None:
    """Complain about settings before any work starts."""
    trained = config.train
    if trained.validation_fraction <= 0:
        raise UserError("a sweep compares trials on held-out episodes: --validation-fraction must be above 0")
    if config.early_stopping and trained.max_minutes is not None:
        raise UserError("early stopping compares trials epoch by epoch: --no-early-stopping, or no --max-minutes")
    if config.search == "bayesian" and config.goal != "accuracy" and config.early_stopping:
        raise UserError(
            "a trial that is stopped early has no success for the search to learn from: --no-early-stopping"
        )
    for package, wanted in (
        ("optuna", config.search == "bayesian"),
        ("mlflow", config.mlflow),
        ("wandb", config.wandb),
    ):
        if wanted and importlib.util.find_spec(package) is None:
            raise UserError(f"{package} is not installed here: pip install {package}")
    train.check(replace(trained, annotations=trained.annotations or Path("made by the sweep")))


def check_tuning_split(config: SweepConfig) -> None:
    """Raises UserError if the tuning placements are among those that the data was collected from."""
    if config.goal == "accuracy":
        return
    if config.tuning.placements < 1 or not parse_range(config.tuning.tasks, "--tuning.tasks"):
        raise UserError("--tuning.placements must be 1 or more, --tuning.tasks not empty: trials act there")
    for path in store.list_episodes(config.train.data):
        key = store.read_key(store.read_metadata(path)["key"])
        if key.init.kind == "placement" and key.seed == config.tuning.seed:
            raise UserError(
                f"{config.train.data} has placements of seed {key.seed}, which --tuning.seed would tune on; "
                "choose another seed"
            )


def annotate_taxonomies(config: SweepConfig, axes: list[Axis]) -> dict[int, Location]:
    """Annotations by the rules for every number of phases that a trial may ask for, unless some were given."""
    if not prepare.find_method(config.train.objective).annotated or config.train.annotations is not None:
        return {}
    chosen = [int(phases) for axis in axes if axis.name == "phases" for phases in axis.choices] or [DEFAULT_PHASES]
    folders = {phases: config.out / "annotations" / str(phases) for phases in chosen}
    for phases, out in folders.items():
        number: Any = phases
        annotate.annotate(AnnotateConfig(data=config.train.data, out=out, phases=number))
    return folders


def spread(config: SweepConfig) -> SweepConfig:
    """Fill in what depends on the cluster: how many trials at a time, and with how many CPUs each."""
    trained, fleet = config.train, config.tuning.fleet
    workers = Processes("worker", trained.workers or 1, trained.cpus_per_worker, trained.gpus_per_worker, share=True)
    concurrent, share = fitted(
        lambda nodes: divide_groups(nodes, workers, config.concurrent), workers, trained.wait_for_nodes_s
    )
    if config.goal != "accuracy":
        actors = fleet.actors or max(1, actor_count(fleet) // concurrent)
        # Like training workers, simulators leave a little of a CPU to the trials' own actors.
        fleet = replace(fleet, actors=actors, cpus_per_actor=max(0.0, fleet.cpus_per_actor - SPARE_CPUS))
    return replace(
        config,
        concurrent=concurrent,
        train=replace(
            trained,
            workers=share.count,
            cpus_per_worker=int(share.cpus),
            frame_cache=trained.frame_cache or config.out / "frames",
        ),
        tuning=replace(config.tuning, fleet=fleet),
    )


def run_trials(config: SweepConfig, axes: list[Axis], annotations: Mapping[int, Location]) -> ResultGrid:
    """Start Ray Tune, or restore it: trials that ended stay as they are, one that had begun continues."""
    trainable = tune.with_resources(
        tune.with_parameters(run_trial, sweep=config, annotations=dict(annotations)), {"cpu": TRIAL_CPUS}
    )
    storage = places.storage(config.out)
    place, filesystem = f"{storage['storage_path']}/tune", storage["storage_filesystem"]
    if tune.Tuner.can_restore(place, filesystem):
        return tune.Tuner.restore(place, trainable, restart_errored=True, storage_filesystem=filesystem).fit()
    tuner = tune.Tuner(
        trainable,
        param_space=domains(axes, config.search),
        tune_config=tune.TuneConfig(
            search_alg=searcher(config),
            scheduler=scheduler(config),
            num_samples=1 if config.search == "grid" else config.trials,
            max_concurrent_trials=config.concurrent,
            time_budget_s=config.minutes * 60 if config.minutes is not None else None,
            trial_dirname_creator=lambda trial: f"{trial.trial_id}-{trial_name(trial.config)}",
        ),
        run_config=tune.RunConfig(
            name="tune",
            **storage,
            callbacks=[AfterTrial(), *trackers(config)],
            failure_config=tune.FailureConfig(max_failures=1),
            verbose=0,
        ),
    )
    return tuner.fit()


def searcher(config: SweepConfig, storage: BaseStorage | None = None) -> Searcher | BasicVariantGenerator:
    """What proposes the trials' settings. `storage`: where Optuna keeps what it has learnt, instead of in memory."""
    if config.search != "bayesian":
        return BasicVariantGenerator(random_state=config.search_seed, max_concurrent=config.concurrent)
    from ray.tune.search.optuna import OptunaSearch

    metrics = {"accuracy": [METRIC], "success": ["success/rate"], "both": [METRIC, "success/rate"]}[config.goal]
    # A list even of one: with a single name every epoch's report would have to have the success.
    return OptunaSearch(metric=metrics, mode=["max"] * len(metrics), seed=config.search_seed, storage=storage)


def scheduler(config: SweepConfig) -> TrialScheduler:
    if not config.early_stopping:
        return FIFOScheduler()
    return Asha(
        config.train.epochs,
        time_attr="epoch",
        metric=METRIC,
        mode="max",
        grace_period=min(config.grace_epochs, config.train.epochs),
        reduction_factor=config.reduction,
        max_t=config.train.epochs + 1,
    )


class Asha(ASHAScheduler):
    """Asynchronous successive halving (Li et al. 2020) that lets a trial that has been trained to the end wind up."""

    def __init__(self, epochs: int, **settings: Any):
        super().__init__(**settings)
        self._epochs = epochs

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:
        if result["epoch"] >= self._epochs:
            return TrialScheduler.CONTINUE
        return str(super().on_trial_result(tune_controller, trial, result))


class AfterTrial(Callback):
    """Frees what a trial that was stopped has left, and says on the terminal how it ended.

    Ray Train's workers outlive a trial that Ray Tune stops: their placement group belongs to the driver. A cleaner of
    Ray's own is meant to remove it, but fails where the state API cannot be reached (ray-project/ray#54305).
    """

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        free(trial)
        result = trial.last_result or {}
        ended = sum(each.is_finished() for each in trials)
        validation = result.get("validation")
        accuracy = f", near {100 * validation['near']:.1f} % held out" if validation else ""
        cli.console.print(f"trial {ended}: {trial_name(trial.config)}, {result.get('epoch', 0)} epochs{accuracy}")

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        free(trial)


def free(trial: TuneTrial) -> None:
    """Remove the placement group of a trial's workers; nothing happens where it is gone, as it is after a whole run."""
    held = (trial.last_result or {}).get(PLACEMENT_GROUP)
    if held is not None:
        remove_placement_group(PlacementGroup(PlacementGroupID.from_hex(held)))


def trackers(config: SweepConfig) -> list[Callback]:
    """Callbacks to MLflow and Weights & Biases, if asked for; TensorBoard's is Ray Tune's default."""
    callbacks: list[Callback] = []
    if config.mlflow is not None:
        from ray.air.integrations.mlflow import MLflowLoggerCallback

        callbacks.append(MLflowLoggerCallback(tracking_uri=config.mlflow, experiment_name=config.out.name))
    if config.wandb is not None:
        from ray.air.integrations.wandb import WandbLoggerCallback

        callbacks.append(WandbLoggerCallback(project=config.wandb, group=config.out.name))
    return callbacks


def read_trial(result: tune.Result) -> results.Trial:
    """Ray Tune's result of one trial -> ours."""
    metrics = result.metrics or {}
    validation = metrics.get("validation") or {}
    settings = dict(result.config or {})
    finished = bool(metrics.get("finished"))
    error = str(result.error).strip().splitlines()[-1] if result.error is not None else None
    return results.Trial(
        name=trial_name(settings),
        settings=settings,
        state="failed" if error else "finished" if finished else "stopped early",
        epochs=int(metrics.get("epoch", 0)),
        near=validation.get("near"),
        exact=validation.get("exact"),
        success=metrics.get("success"),
        seconds=round(float(metrics.get("time_total_s", 0.0)), 1),
        error=error,
    )


def warnings(axes: list[Axis], config: SweepConfig) -> list[str]:
    if config.goal != "success" and any(axis.name == "chunk" for axis in axes):
        return [
            "accuracy is a mean over the K actions of a chunk, and later ones are harder to foresee: "
            "it favours a short chunk. Compare K by --goal success."
        ]
    return []


def write(config: SweepConfig, annotations: Mapping[int, Location], summary: dict[str, Any]) -> None:
    """best.json, trials.md, trials.png, and summary.json last."""
    settings = dataclasses.asdict(trial_config(config, annotations, summary["best"]["settings"]))
    del settings["out"]  # for the user to say
    store.write_json(config.out / "best.json", {"stage": "TrainConfig", "config": settings, **software()})
    headings, rows = results.columns(summary)
    lines = [" | ".join(row) for row in (headings, ["---"] * len(headings), *rows)]
    with store.replacing(config.out / "trials.md") as temporary:
        temporary.write_text("".join(f"| {line} |\n" for line in lines))
    plot.parallel_coordinates(summary, config.out / "trials.png")
    for warning in summary["warnings"]:
        cli.console.print(f"[yellow]warning:[/] {warning}")
    store.write_json(config.out / "summary.json", summary)
