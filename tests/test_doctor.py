"""`vlaad doctor` names what is broken on a machine, and what to do about it."""

import re
import subprocess
import sys

import pytest

from vlaad_ray import doctor
from vlaad_ray.configs import DoctorConfig, UserError
from vlaad_ray.main import main

GB = 10**9


def test_a_machine_without_egl_is_told_which_libraries_to_install(monkeypatch, tmp_path):
    monkeypatch.setenv("__EGL_VENDOR_LIBRARY_DIRS", str(tmp_path))  # where libEGL looks for drivers: there are none
    found = doctor.drawing()
    assert found.broken and found.remedy.startswith("install OpenGL: apt-get install libegl1")
    assert "EGL" in found.found and "_mjr_context" not in found.found, "the cause, not what came of it"


def test_a_wrong_version_and_a_missing_package_are_named(monkeypatch, tmp_path):
    there = tmp_path / "mujoco-3.4.0.dist-info"
    there.mkdir()
    (there / "METADATA").write_text("Metadata-Version: 2.1\nName: mujoco\nVersion: 3.4.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    installed = doctor.installed_packages()
    found = doctor.packages("sim", installed)
    assert found.found == "mujoco is 3.4.0, not ==3.3.2" and found.remedy == "type: pip install 'vlaad-ray[sim]'"
    without = {name: version for name, version in installed.items() if name != "robosuite"}
    assert "robosuite is missing" in doctor.packages("sim", without).found
    assert not doctor.packages("train", installed).remedy


def test_extras_of_extras_are_looked_at():
    """[tune] stands on [sim], which stands on [pipeline]."""
    names = {requirement.name for requirement in doctor.requirements("tune")}
    assert {"optuna", "mujoco", "ray", "pyarrow"} <= names and "nncf" not in names
    with pytest.raises(UserError, match="--extras simulator: vlaad-ray has no such extra; choose of annotate, "):
        doctor.packages("simulator", doctor.installed_packages())


@pytest.mark.parametrize(("size", "verdict"), [(0, "BROKEN"), (64 * 2**20, "BROKEN"), (2 * GB, "note"), (8 * GB, "ok")])
def test_a_container_with_too_little_shared_memory(size, verdict):
    """Docker gives 64 MB."""
    line = str(doctor.shared_memory(size, 24 * GB))
    assert line.startswith(f"{verdict} ") and ("--shm-size=7g" in line) == (verdict != "ok")


def test_torch_for_cpus_beside_a_gpu_is_noted():
    assert "sees none of 1 GPUs (NVIDIA H100)" in str(doctor.torch(["NVIDIA H100"]))


def test_what_hangs_or_dies_is_a_finding():
    def judge(said):
        return doctor.Finding("it", said)

    hung = doctor.asked("it", ["tail", "-f", "/dev/null"], 0.1, judge, "mend it")
    assert (hung.found, hung.remedy) == ("no answer in 0.1 s", "mend it")
    died = doctor.asked("it", [sys.executable, "-c", "import os; os.kill(os.getpid(), 11)"], 30, judge, "mend it")
    assert died.found == "ended by signal 11: it says nothing"


def test_all_checks_of_a_machine_and_their_exit_code(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setattr(doctor, "SHARED_MEMORY", tmp_path / "none")
    with pytest.raises(SystemExit) as ended:
        doctor.run(DoctorConfig(extras=("sim",), out=tmp_path / "not" / "there" / "yet"))
    shown = capsys.readouterr().out
    assert ended.value.code == 1
    assert re.search(r"^ok +drawing +\w+", shown, re.M) and re.search(r"^ok +disk +\d+ GB free at /", shown, re.M)
    assert re.search(r"^BROKEN +shared memory +0\.0 GB", shown, re.M)
    assert re.search(r"^BROKEN +Ray +RAY_ADDRESS=127\.0\.0\.1:1", shown, re.M)
    assert shown.endswith("found something broken: shared memory, Ray\n")


def test_completion_is_a_script_that_bash_reads_and_knows_commands_and_flags(capsys):
    with pytest.raises(SystemExit) as ended:
        main("completion", ["--shell", "bash"])
    assert not ended.value.code
    script = capsys.readouterr().out
    assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0
    assert all(word in script for word in ("collect", "distillation", "--placements", "--gripper-dwell"))
