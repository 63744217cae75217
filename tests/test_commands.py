"""What users type: the commands of the wheel, the same as scripts in jobs/, and every command in the documentation."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import vlaad_ray
from vlaad_ray import main, plugins

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DOCUMENTS = sorted(path for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("cluster/*.md")])
JOBS = sorted((ROOT / "jobs").glob("*.py"))


def command_of(script: Path) -> str:
    return script.stem.replace("_", "-")


def parse(command: str) -> Any:
    """Parse a `vlaad x …` or `python jobs/x.py …` command as it would be; SystemExit if it would be refused."""
    words = shlex.split(command, comments=True)
    name, args = (words[1], words[2:]) if words[0] == "vlaad" else (command_of(Path(words[1])), words[2:])
    if "--config" in args:  # stands for flags: those that have no default, at least
        at = args.index("--config")
        args = ["--data", "DATA", *args[:at], *args[at + 2 :]]
    return main.parse(name, args)


def documented_commands() -> list[str]:
    """Commands in code blocks, in backticks and in --help; those with a placeholder (… or a|b) are left out."""
    texts = {str(path.relative_to(ROOT)): re.sub(r"\s*\\\n\s*", " ", path.read_text()) for path in DOCUMENTS}
    texts |= {f"vlaad {name} --help": inspect.getdoc(command.load) or "" for name, command in main.COMMANDS.items()}
    kinds = r"(?:python jobs/\w+\.py|vlaad [\w-]+)"
    commands = []
    for where, text in texts.items():
        for line in text.splitlines():
            block = re.search(rf"^\s*(?:ray job submit .* -- )?({kinds} .*)", line)
            found = re.findall(rf"`({kinds} [^`]*)`", line)
            if block:  # two spaces set a remark apart
                found = [re.split(r"  +", block[1])[0]]
            complete = [command for command in found if not re.search(r"…|\||\.\.\.|--help|\$", command)]
            commands += [f"{where}: {command}" for command in complete]
    return commands


@pytest.mark.parametrize("command", documented_commands())
def test_documented_command_parses(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Documentation rots when a flag is renamed."""
    monkeypatch.syspath_prepend(ROOT / "tests" / "plugins")
    monkeypatch.setenv(plugins.VARIABLE, "")
    parse(command.partition(": ")[2])


def test_every_job_is_the_command_of_its_name() -> None:
    """What jobs did was in their scripts, and so in no wheel."""
    for script in JOBS:
        assert f'main("{command_of(script)}")' in script.read_text()
        assert command_of(script) in main.COMMANDS
        assert len(script.read_text().splitlines()) <= 6, "what it does belongs into the package"
    module, _, function = PROJECT["scripts"]["vlaad"].partition(":")
    assert getattr(importlib.import_module(module), function) is main.main
    assert (ROOT / "vlaad_ray/py.typed").exists()


@pytest.mark.parametrize("name", main.COMMANDS)
def test_help_of_every_command_has_an_example_and_the_flags(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main.main(name, ["--help"])
    shown = capsys.readouterr().out
    assert ended.value.code == 0
    assert f"\nvlaad {name} " in shown and f"usage: vlaad {name}" in shown
    assert "-h, --help" in shown


def test_version_of_every_job_and_server(capsys: pytest.CaptureFixture[str]) -> None:
    for name in (None, *main.COMMANDS):
        main.main(name, ["--version"])
        assert capsys.readouterr().out == f"vlaad-ray {vlaad_ray.__version__}\n"
    for command in (["jobs/collect.py"], ["-m", "vlaad_ray.deploy.server"]):
        done = subprocess.run([sys.executable, *command, "--version"], capture_output=True, text=True, cwd=ROOT)
        assert (done.returncode, done.stdout) == (0, f"vlaad-ray {vlaad_ray.__version__}\n")


def test_commands_are_listed_and_a_misspelt_one_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    main.main(None, [])
    shown = capsys.readouterr().out
    assert [line.split()[0] for line in shown.splitlines()[2:]] == [*main.COMMANDS]
    with pytest.raises(SystemExit) as ended:
        main.main(None, ["colect"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: 'colect' is no command; choose one of collect, annotate, ")


def test_a_package_that_is_missing_is_one_line_with_the_extra_that_brings_it(tmp_path: Path) -> None:
    """The wheel alone brings numpy and tyro."""
    code = "import sys; sys.modules['ray'] = None; from vlaad_ray.main import main; main()"
    command = [sys.executable, "-c", code, "collect", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == (
        "error: vlaad collect needs the package ray, which is not installed; type: pip install 'vlaad-ray[sim]'\n"
    )
    named = {extra for command in main.COMMANDS.values() for extra in command.extra.split(",")}
    assert named <= PROJECT["optional-dependencies"].keys()


@pytest.mark.parametrize(
    ("command", "flag"),
    [
        ("eval --policy openvla/openvla-7b --out {out}", "--policy: 'openvla/openvla-7b' is neither a teacher"),
        ("server --checkpoint org/student", "org/student/config.json does not exist"),
        ("serve --checkpoint org/student", "org/student/config.json does not exist"),
        ("export --checkpoint org/student --data data --out {out}", "org/student/config.json does not exist"),
        (
            "collect --teacher openvla --checkpoint openvla/openvla-7b --out {out}",
            "--checkpoint: openvla/openvla-7b is",
        ),
    ],
)
def test_a_hub_name_in_place_of_a_checkpoint_is_told_what_is_taken(
    command: str, flag: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """It "does not exist", on the hub it does: what a user wants to know is what may stand there."""
    name, *args = command.format(out=tmp_path / "out").split()
    with pytest.raises(SystemExit) as ended:
        main.main(name, args)
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.count("\n") == 1
    assert flag in said
    assert "give a directory or URI; a name on a model hub (" in said
    assert "is taken for --backbone and --model alone" in said


@pytest.mark.slow
def test_the_wheel_alone_has_the_commands(tmp_path: Path) -> None:
    """Installed elsewhere, without a checkout. Needs pip's registry for the build backend."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", tmp_path, ROOT], check=True, cwd=tmp_path)
    (wheel,) = tmp_path.glob("vlaad_ray-*.whl")
    bare = tmp_path / "bare"
    subprocess.run([*pip, "install", "--no-deps", "--target", bare, wheel], check=True, cwd=tmp_path)
    assert (bare / "vlaad_ray/py.typed").exists() and (bare / "vlaad_ray/annotate/prompts.toml").exists()
    assert not (bare / "jobs").exists()

    def run(*command: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(bare)}
        return subprocess.run(
            [sys.executable, *command], capture_output=True, text=True, check=True, cwd=tmp_path, env=environment
        ).stdout

    vlaad = str(bare / "bin/vlaad")
    assert run("-c", "import vlaad_ray; print(vlaad_ray.__file__)").startswith(str(bare))
    assert run(vlaad, "--version") == f"vlaad-ray {vlaad_ray.__version__}\n"
    assert "--init-states STR" in run(vlaad, "collect", "--help")
    assert "pipeline" in run(vlaad)


@pytest.mark.parametrize("script", JOBS, ids=lambda script: script.stem)
def test_no_job_shadows_a_package(script: Path) -> None:
    """`python jobs/x.py` puts jobs/ first on the path: `import x` anywhere, for a package x, would find the job."""
    spec = importlib.util.find_spec(script.stem)
    assert spec is None or Path(spec.origin or "").parent == ROOT / "jobs"


def test_a_simulator_and_its_driver_start_without_torch():
    """It took a second and 190 MB of every one of them, for students alone."""
    code = "import sys, vlaad_ray.collect, vlaad_ray.evaluate; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
