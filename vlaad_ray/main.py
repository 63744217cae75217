"""`vlaad NAME …`: every job and server by its name. The scripts in jobs/ are the same, for `ray job submit`.

A new command is one function and one line in COMMANDS. What a command needs is imported when it is called: a robot's
computer has neither Ray nor a simulator, and --help should be quick.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import cleandoc
from typing import Annotated, Any, Union

import tyro

from vlaad_ray import __version__, configs
from vlaad_ray.configs import UserError, check_bounds, users_errors, with_packages
from vlaad_ray.runtime import doors
from vlaad_ray.summaries import AnnotateSummary

Run = Callable[[Any], None]
"""Does the work that a config describes, and shows what came of it."""


@dataclass(frozen=True)
class Command:
    """What `vlaad NAME` is."""

    load: Callable[[], Run]
    """Imports what the command needs. Its docstring is what --help begins with."""
    config: type[Any] | Mapping[str, type[Any]]
    """Flags are the fields of this dataclass; or of one of several, by subcommand."""
    extra: str
    """The optional dependencies of pyproject.toml that it stands on."""


def collect() -> Run:
    """Stage 1: roll out a teacher in LIBERO over Ray actors and keep the successful episodes.

    vlaad collect --suite libero_object --tasks 0-9 --init-states 0-19 --teacher scripted --actors 2 --out DATA
    """
    from vlaad_ray.collect import collect, show

    return _stage(collect, show)


def annotate() -> Run:
    """Stage 2: label every frame of a dataset.

    vlaad annotate --data DATA --annotator rules --phases 9 --out NOTES
    vlaad annotate --data DATA --annotator vlm --model NAME --out NOTES      then look at NOTES/contact_sheet.html
    """
    from vlaad_ray.annotate import annotate, table
    from vlaad_ray.report import write_contact_sheet
    from vlaad_ray.runtime import cli

    def annotate_and_show(config: configs.AnnotateConfig) -> AnnotateSummary:
        """Annotate; of a VLM's answers make the sheet on which a person judges them."""
        summary = annotate(config)
        if config.annotator == "vlm" and config.vlm.sheet:
            sheet = write_contact_sheet(config.out, config.data, config.vlm.sheet)
            cli.console.print(f"Contact sheet: {sheet}")
        return summary

    return _stage(annotate_and_show, table)


def train() -> Run:
    """Stage 3: train a student.

    vlaad train --data DATA --annotations NOTES --objective dual_path --out RUN

    --config FILE takes settings from a sweep's best.json or from another run's config.json; flags beside it win:

    vlaad train --config SWEEP/best.json --epochs 30 --out RUN
    """
    from vlaad_ray.train import table, train

    return _stage(train, table)


def probe() -> Run:
    """ActDistill, stage 1: what each decoder layer of a trained mini_vla knows of the action.

    vlaad probe --checkpoint TEACHER --data DATA --out PROBES
    """
    from vlaad_ray.distil.probe import probe, show

    return _stage(probe, show)


def distil() -> Run:
    """ActDistill, stage 2: a student that is its teacher with fewer decoder layers, to a budget of FLOPs.

    vlaad distil --checkpoint TEACHER --data DATA --probes PROBES --budget 0.5 --out RUN
    vlaad distil --checkpoint TEACHER --data DATA --select first --losses task --budget 0.5 --out RUN     a plain cut
    """
    from vlaad_ray.distil.stage import distil, show

    return _stage(distil, show)


def sweep() -> Run:
    """Stage 4: search for hyperparameters with Ray Tune; ends with a table, a plot and a config for `vlaad train`.

    vlaad sweep --data DATA --out SWEEP --epochs 8 --trials 12
    vlaad sweep --data DATA --out SWEEP --search grid --space.phases 3,5,7,9,11,13 --space.alpha 1 --space.lr ''
    vlaad sweep --data DATA --out SWEEP --search bayesian --goal both --no-early-stopping
    """
    from vlaad_ray.experiments.sweep import show, sweep

    return _stage(sweep, show)


def study() -> Run:
    """The paper's claims put to the test, on your own teacher; each leaves a table, a plot and the raw numbers.

    vlaad study distillation       the student against its teacher on three suites
    vlaad study noise              does semantics beat plain cloning when the teacher flips its gripper?
    vlaad study phases             3 to 13 phases: how even, and what for the student?
    vlaad study alpha              weight of the path without description, by suite
    vlaad study budget             students that run fewer layers: success against FLOPs (ActDistill)
    vlaad study alpha --tasks 0 --epochs 2 --placements 0 --eval-init-states 20-22    small, to see it work
    """
    from vlaad_ray.files import read_bytes
    from vlaad_ray.runtime import cli

    def study_and_show(config: Any) -> None:
        name = _subcommand("study", config)
        page = importlib.import_module(f"vlaad_ray.experiments.studies.{name}").study(config)
        cli.console.print(read_bytes(page).decode(), markup=False)
        cli.console.print(f"Results: {page}")

    return study_and_show


def evaluate() -> Run:
    """Stage 5: evaluate a teacher or a student closed loop in LIBERO, in parallel, with intervals and videos.

    vlaad eval --policy scripted --suite libero_object --tasks 0-9 --init-states 20-39 --out EVAL
    vlaad eval --policy RUN/checkpoint --compare-to EVAL --out EVAL2
    vlaad eval --policy RUN/checkpoint --stock --out EVAL3      in LIBERO's own environment, unchanged and slow
    vlaad eval --policy RUN/checkpoint --perturb all --out EVAL4        and on every variant of the suite
    """
    from vlaad_ray.evaluate import evaluate, evaluate_family, show, show_family
    from vlaad_ray.runtime import cli

    def evaluate_and_show(config: configs.EvalConfig) -> None:
        if config.perturb:
            cli.run_stage(config, evaluate_family, show_family, "perturbed.json")
        else:
            cli.run_stage(config, evaluate, show)

    return evaluate_and_show


def audit() -> Run:
    """How noisy is a dataset, or a teacher? Self-revoking gripper targets, jerk, stalls; what to filter; repair.

    vlaad audit --data DATA --out DIR                                   a dataset that exists
    vlaad audit --data DATA --out DIR --repair DATA2                    and a copy with steady gripper targets
    vlaad audit --teacher scripted --suite libero_goal --episodes 50 --out DIR     a teacher, live
    """
    from vlaad_ray.experiments.teacher_audit import run_audit
    from vlaad_ray.quality.summary import show

    return _stage(run_audit, show)


def export() -> Run:
    """Stage 6: export a checkpoint for ONNX Runtime or OpenVINO, compared with torch on real frames.

    vlaad export --checkpoint RUN/checkpoint --backend openvino --precision bf16 --data DATA --out EXPORT
    """
    from vlaad_ray.export import export, show

    return _stage(export, show)


def export_dataset() -> Run:
    """Write a dataset as a LeRobot dataset, so that others can train on it.

    vlaad export-dataset --data DATA --annotations NOTES --format lerobot --out DIR
    """
    from vlaad_ray.exchange.export import export_dataset, show

    return _stage(export_dataset, show)


def import_dataset() -> Run:
    """Make a dataset out of somebody else's: LeRobot's, or LIBERO's and robomimic's demonstrations in HDF5.

    vlaad import-dataset --source lerobot --from DIR --out DATA
    vlaad import-dataset --source hdf5 --from DIR --suite libero_object --replay 2 --out DATA
    """
    from vlaad_ray.exchange.bring import import_dataset, show

    return _stage(import_dataset, show)


def serve() -> Run:
    """Serve a student from replicas on a cluster, over openpi's websocket protocol, until it is stopped.

    vlaad serve --checkpoint RUN/checkpoint --replicas 2 --gpus-per-replica 0.5
    """
    from vlaad_ray.deploy.ray_serve import run

    return run


def server() -> Run:
    """Serve a student from this process, over openpi's websocket protocol: neither Ray nor LIBERO.

    vlaad server --checkpoint RUN/checkpoint --port 8000
    """
    from vlaad_ray.deploy.server import run

    return run


def report() -> Run:
    """Write the HTML page of a run again, from what the stages left there.

    vlaad report runs/demo
    """
    from vlaad_ray.report import write_report

    return lambda config: print(write_report(config.run))


def bench() -> Run:
    """Benchmarks against a baseline in the same run.

    vlaad bench rollout --out DIR                  control steps per second against LIBERO's own loop
    vlaad bench annotate --data DATA --out DIR     answers per second through Ray Data against vLLM alone
    vlaad bench openvla --size full --out DIR      OpenVLA's latency and throughput, batched against one by one
    vlaad bench policy --policy vlaad_158m --out DIR     a student in every backend against OpenVLA-7B
    vlaad bench teacher --out DIR                  batched teacher requests against the ideal, and plainer batching
    vlaad bench evaluation --out DIR               episodes a minute: a student in each simulator against shared ones
    vlaad bench gpu --out DIR                      all that an NVIDIA GPU is needed for, within ten minutes
    vlaad bench audit --data DATA --out DIR        what the audit sees of a server that lies at known rates
    """
    from vlaad_ray.runtime import cli

    def bench_and_show(config: Any) -> None:
        # Imported only now: each needs packages that the others can do without.
        name = _subcommand("bench", config)
        module = importlib.import_module(f"vlaad_ray.experiments.bench.{'lies' if name == 'audit' else name}")
        cli.run_stage(config, getattr(module, f"bench_{name}"), module.show)

    return bench_and_show


def pipeline() -> Run:
    """The whole way in one command: collect, annotate, train, evaluate teacher and student, report.

    vlaad pipeline --out runs/demo                              one task, about 20 minutes on two cores
    vlaad pipeline --out runs/object --tasks 0-9 --epochs 20 --max-minutes 90    all ten tasks

    Each stage writes into its own folder of --out and can be rerun alone; rerunning the pipeline continues it.
    """
    from vlaad_ray.pipeline import run_pipeline, show

    return _stage(run_pipeline, show)


def doctor() -> Run:
    """Is this machine ready? A line for each check; what is broken comes with what to do about it.

    vlaad doctor
    vlaad doctor --extras sim train annotate-cpu --out /shared/runs
    """
    from vlaad_ray.doctor import run

    return run


def completion() -> Run:
    """Print what lets a shell complete commands and flags with Tab.

    vlaad completion --shell bash        append what it prints to ~/.bash_completion
    """

    def show_completion(config: configs.CompletionConfig) -> None:
        kinds = {name: _config_type(command.config) for name, command in COMMANDS.items()}
        words = ["--tyro-print-completion", config.shell]
        tyro.extras.subcommand_cli_from_dict(kinds, prog="vlaad", args=words)

    return show_completion


STUDIES: Mapping[str, type[Any]] = {
    "phases": configs.StudyPhasesConfig,
    "noise": configs.StudyNoiseConfig,
    "alpha": configs.StudyAlphaConfig,
    "distillation": configs.StudyDistillationConfig,
    "budget": configs.StudyFlopsConfig,
}
BENCHMARKS: Mapping[str, type[Any]] = {
    "rollout": configs.BenchRolloutConfig,
    "annotate": configs.BenchAnnotateConfig,
    "audit": configs.BenchAuditConfig,
    "openvla": configs.BenchOpenVlaConfig,
    "policy": configs.BenchPolicyConfig,
    "teacher": configs.BenchTeacherConfig,
    "evaluation": configs.BenchEvaluationConfig,
    "gpu": configs.BenchGpuConfig,
}
COMMANDS: Mapping[str, Command] = {
    "collect": Command(collect, configs.CollectConfig, "sim"),
    "annotate": Command(annotate, configs.AnnotateConfig, "pipeline"),
    "train": Command(train, configs.TrainConfig, "train"),
    "probe": Command(probe, configs.ProbeConfig, "train"),
    "distil": Command(distil, configs.DistilConfig, "train"),
    "sweep": Command(sweep, configs.SweepConfig, "tune"),
    "study": Command(study, STUDIES, "tune"),
    "eval": Command(evaluate, configs.EvalConfig, "sim,train"),
    "audit": Command(audit, configs.AuditConfig, "sim"),
    "export": Command(export, configs.ExportConfig, "export"),
    "export-dataset": Command(export_dataset, configs.ExportDatasetConfig, "pipeline"),
    "import-dataset": Command(import_dataset, configs.ImportDatasetConfig, "pipeline"),
    "serve": Command(serve, configs.ServeClusterConfig, "serve"),
    "server": Command(server, configs.ServeConfig, "deploy"),
    "report": Command(report, configs.ReportConfig, "pipeline"),
    "bench": Command(bench, BENCHMARKS, "sim,train"),
    "pipeline": Command(pipeline, configs.PipelineConfig, "sim,train"),
    "doctor": Command(doctor, configs.DoctorConfig, "sim,train"),
    "completion": Command(completion, configs.CompletionConfig, "deploy"),
}


def main(name: str | None = None, args: Sequence[str] | None = None) -> None:
    """`vlaad NAME FLAG …`; `name`: which command, where a script is one. `args`: instead of the command line's."""
    words = list(sys.argv[1:] if args is None else args)
    if "--version" in words:
        print(f"vlaad-ray {__version__}")
        return
    if name is None:
        if not words or words[0] in ("-h", "--help"):
            print(overview())
            return
        name = words.pop(0)
    with users_errors():
        if name not in COMMANDS:
            raise UserError(f"{name!r} is no command; choose one of {', '.join(COMMANDS)}")
        config = parse(name, words)
        check_bounds(config)
        command = COMMANDS[name]
        run = with_packages(command.load, f"vlaad {name}", f"vlaad-ray[{command.extra}]")
        run(config)


def overview() -> str:
    """What `vlaad --help` says."""
    lines = [f"  {name:16}{_says(name).splitlines()[0]}" for name in COMMANDS]
    return "\n".join(["usage: vlaad COMMAND [--help | --version | flags]", "", *lines])


def parse(name: str, args: Sequence[str]) -> Any:
    """The config that the words after `vlaad NAME` make. Exits where tyro does: --help, a flag that is not known."""
    if {"-h", "--help"} & set(args):
        print(f"{_says(name)}\n")
    kind = COMMANDS[name].config
    args = doors.take_plugins(args)
    if isinstance(kind, Mapping):
        kinds = {sub: doors.with_settings(each, args) for sub, each in kind.items() if sub in args[:1]}
        return doors.plain(tyro.extras.subcommand_cli_from_dict({**kind, **kinds}, prog=f"vlaad {name}", args=args))
    if name == "train" and "--config" in args:
        from vlaad_ray.runtime.record import with_config_file

        args = with_config_file(args, kind)
    return doors.plain(tyro.cli(doors.with_settings(kind, args), prog=f"vlaad {name}", args=args))


def _says(name: str) -> str:
    return cleandoc(COMMANDS[name].load.__doc__ or "")


def _config_type(config: type[Any] | Mapping[str, type[Any]]) -> Any:
    """One type, as tyro takes it, of a command with subcommands too."""
    if isinstance(config, Mapping):
        return Union[*(Annotated[each, tyro.conf.subcommand(name)] for name, each in config.items())]
    return config


def _stage(run: Callable[[Any], Any], show: Callable[[Any], Any]) -> Run:
    from vlaad_ray.runtime import cli

    return functools.partial(cli.run_stage, stage=run, show=show)


def _subcommand(name: str, config: Any) -> str:
    kinds = COMMANDS[name].config
    assert isinstance(kinds, Mapping)
    (chosen,) = (sub for sub, kind in kinds.items() if type(config) is kind)
    return chosen
