"""Settings out of range, whoever gives them and wherever: one line before any work starts."""

import dataclasses
import importlib
import inspect
import math
import re
from pathlib import Path
from typing import Annotated, Literal, get_args, get_origin

import pytest
import tyro

from vlaad_ray import configs
from vlaad_ray.annotate import annotate
from vlaad_ray.collect import collect
from vlaad_ray.configs import (
    AnnotateConfig,
    AuditConfig,
    CollectConfig,
    EnvConfig,
    EvalConfig,
    ExportConfig,
    NoiseConfig,
    ServeConfig,
    ServedStudentConfig,
    ServerConfig,
    SweepConfig,
    TeacherNoiseConfig,
    TrainConfig,
    TuningConfig,
    UserError,
    VlmConfig,
    check_bounds,
)
from vlaad_ray.configs.bounds import Bound, hints, marks_of, settings
from vlaad_ray.deploy import server
from vlaad_ray.evaluate import evaluate
from vlaad_ray.export import export
from vlaad_ray.main import main
from vlaad_ray.methods.vlaad.config import DualPathConfig
from vlaad_ray.quality.stage import audit
from vlaad_ray.runtime import doors
from vlaad_ray.runtime.doors import DOORS
from vlaad_ray.train import train


def entries(door):
    module, _, variable = door.entries.partition(":")
    return vars(importlib.import_module(module)).get(variable, {})


ENTRIES = [entry.config for door in DOORS for entry in entries(door).values() if hasattr(entry, "config")]
"""Settings of suites, teachers, students and objectives, those of other test files' plugins among them."""
CONFIGS = sorted(
    {*ENTRIES, *dict(inspect.getmembers(configs, inspect.isclass)).values()}, key=lambda each: each.__name__
)
CONFIGS = [each for each in CONFIGS if dataclasses.is_dataclass(each) and each.__module__.startswith("vlaad_ray.")]
PATHS = {name: Path(name) for name in ("data", "out", "checkpoint", "run", "from_")} | {"policy": "scripted"}
TRAIN = TrainConfig(data=Path("data"), out=Path("out"))


def plain(hint):
    """A type without annotations, None and tuples."""
    if get_origin(hint) is Annotated:
        return plain(get_args(hint)[0])
    inner = [each for each in get_args(hint) if each not in (type(None), ...)]
    return plain(inner[0]) if inner and get_origin(hint) is not Literal else hint


def bounds(marks):
    return [mark for mark in marks if isinstance(mark, Bound)]


def made(config_type):
    """A config with its defaults, and made-up values where there are none."""
    values = {}
    for field in dataclasses.fields(config_type):
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            kind = plain(hints(config_type)[field.name])
            values[field.name] = made(kind) if dataclasses.is_dataclass(kind) else PATHS[field.name]
    return config_type(**values)


@pytest.mark.parametrize("config_type", CONFIGS, ids=lambda each: each.__name__)
def test_no_number_is_without_a_bound_and_no_default_outside_of_it(config_type):
    """A new setting without a bound would be taken whatever it is."""
    for name, hint in hints(config_type).items():
        if plain(hint) in (int, float):
            assert bounds(marks_of(hint)), f"{config_type.__name__}.{name}"
    check_bounds(made(config_type))


@pytest.mark.parametrize("config_type", CONFIGS, ids=lambda each: each.__name__)
def test_settings_go_by_the_flags_that_the_terminal_knows(config_type, capsys):
    """A message about --env.image-size helps nobody where the flag is --image-size."""
    with pytest.raises(SystemExit):
        tyro.cli(doors.with_settings(config_type, []), args=["--help"])
    known = set(re.findall(r"^\W (--[a-z0-9.-]+)", capsys.readouterr().out, re.MULTILINE))
    assert {flag for flag, _, marks in settings(made(config_type)) if bounds(marks)} <= known


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (EnvConfig(image_size=0), "--image-size must be 8 to 4096, not 0"),
        (EnvConfig(settle_steps=-5), "--settle-steps must be 0 or more, not -5"),
        (dataclasses.replace(TRAIN, lr=math.nan), "--lr must be finite, above 0, not nan"),
        (
            dataclasses.replace(TRAIN, method=DualPathConfig(alpha=math.inf)),
            "--alpha must be finite, 0 or more, not inf",
        ),
        (dataclasses.replace(TRAIN, validation_fraction=1.0), "--validation-fraction must be 0 to below 1, not 1.0"),
        (dataclasses.replace(TRAIN, max_minutes=0.0), "--max-minutes must be above 0, not 0.0"),
        (VlmConfig(gpu_memory=1.5), "--gpu-memory must be above 0, up to 1, not 1.5"),
        (ServerConfig(port=70000), "--port must be 0 to 65535, not 70000"),
        (CollectConfig(Path("d"), noise=NoiseConfig(sigmas=())), "--noise.sigmas needs at least one value"),
        (CollectConfig(Path("d"), noise=NoiseConfig(sigmas=(0, -1))), "--noise.sigmas must be 0 or more, not -1"),
        (
            SweepConfig(TRAIN, tuning=TuningConfig(env=EnvConfig(image_size=0))),
            "--tuning.image-size must be 8 to 4096, not 0",
        ),
    ],
)
def test_a_setting_out_of_range_is_said_with_its_flag_and_what_it_may_be(config, message):
    with pytest.raises(UserError) as raised:
        check_bounds(config)
    assert str(raised.value) == message


STAGES = {
    "collect": (collect, lambda out: CollectConfig(out, placements=-1), "--placements"),
    "collect, image size": (collect, lambda out: CollectConfig(out, env=EnvConfig(image_size=-3)), "--image-size"),
    "collect, noise": (
        collect,
        lambda out: CollectConfig(out, teacher_noise=TeacherNoiseConfig(jitter=-1)),
        "--teacher-noise.jitter",
    ),
    "annotate": (annotate, lambda out: AnnotateConfig(out / "no", out, vlm=VlmConfig(max_retries=-1)), "--max-retries"),
    "train": (train, lambda out: TrainConfig(out / "no", out, lr=math.nan), "--lr"),
    "eval, budget": (evaluate, lambda out: EvalConfig("scripted", out, budget=-1), "--budget"),
    "eval, videos": (evaluate, lambda out: EvalConfig("scripted", out, videos=-1), "--videos"),
    "export": (export, lambda out: ExportConfig(out / "no", out / "no2", out, frames=0), "--frames"),
    "audit": (lambda config: audit(config, []), lambda out: AuditConfig(out, longest=0), "--longest"),
    "serve": (
        server.run,
        lambda out: ServeConfig(ServedStudentConfig(out / "no", execute=-1)),
        "--execute",
    ),
}


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_called_from_python_refuses_a_setting_out_of_range_before_it_writes(name, tmp_path):
    stage, config, flag = STAGES[name]
    with pytest.raises(UserError, match=f"^{flag} must be "):
        stage(config(tmp_path / "out"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("collect --out {out} --settle-steps -5", "--settle-steps must be 0 or more, not -5"),
        ("collect --out {out} --image-size 0", "--image-size must be 8 to 4096, not 0"),
        ("eval --out {out} --policy {out} --budget -1", "--budget must be 0 or more, not -1"),
        ("train --out {out} --data {out} --lr nan", "--lr must be finite, above 0, not nan"),
        ("sweep --out {out} --data {out} --reduction 1", "--reduction must be 2 or more, not 1"),
        ("study alpha --out {out} --alphas 0.5 -1", "--alphas must be 0 or more, not -1.0"),
        ("bench rollout --out {out} --steps 0", "--steps must be 1 or more, not 0"),
        ("server --checkpoint {out} --port -1", "--port must be 0 to 65535, not -1"),
        ("serve --checkpoint {out} --replicas 0", "--replicas must be 1 or more, not 0"),
        ("pipeline --out {out} --noise.burst-rate 2", "--noise.burst-rate must be 0 to 1, not 2.0"),
    ],
)
def test_a_command_refuses_a_setting_out_of_range_before_it_loads_anything(tmp_path, capsys, words, message):
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as ended:
        main(None, words.format(out=out).split())
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"error: {message}\n"
    assert not out.exists()
