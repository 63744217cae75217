"""A machine that others use, too, and an image that is read-only: LIBERO is imported and computes all the same."""

import os
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

from fakes import without_root_rights

from vlaad_ray.files.private import private_folder

PROGRAM = """
import os, sys
closed = [os.path.realpath(each) for each in {closed!r}]
def guard(event, args):
    # As the kernel does for a read-only file system, and for a log file that belongs to somebody else.
    if event == "open" and isinstance(args[0], (str, bytes)):
        path, mode, flags = os.path.realpath(os.fsdecode(args[0])), args[1], args[2]
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and any(path.startswith(each) for each in closed):
            raise PermissionError(13, "Permission denied", path)
    if event == "os.mkdir" and any(os.path.realpath(args[0]).startswith(each) for each in closed):
        raise PermissionError(13, "Permission denied", args[0])
sys.addaudithook(guard)
really = os.access
os.access = lambda path, mode, **how: really(path, mode, **how) and not (
    mode & os.W_OK and any(os.path.realpath(path).startswith(each) for each in closed)
)
from vlaad_ray.envs import libero
libero.load_benchmark("libero_object")
import numpy, robosuite
from robosuite.utils.transform_utils import mat2quat
print(mat2quat(numpy.eye(3)).tolist(), os.environ.get("NUMBA_CACHE_DIR"), os.path.expanduser("~"))
"""


def run(tmp_path, closed, **changes):
    """Import LIBERO and call what numba compiles, while nothing can be written below the paths `closed`."""
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1", **changes}
    environment = {name: value for name, value in environment.items() if value is not None}
    environment.pop("NUMBA_CACHE_DIR", None)
    program = PROGRAM.format(closed=[str(each) for each in closed])
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()[-1]


def test_a_log_file_of_another_user_is_not_opened(tmp_path):
    """PermissionError: /tmp/robosuite.log, for the second user of a machine."""
    assert run(tmp_path, ["/tmp/robosuite.log"]).startswith("[0.0, 0.0, 0.0, 1.0]")


def test_read_only_packages_and_home_leave_numba_a_cache(tmp_path):
    """RuntimeError: cannot cache function 'mat2quat'."""
    packages = Path(sys.prefix).resolve()
    (tmp_path / "home").mkdir()
    said = run(tmp_path, [packages, tmp_path / "home", "/tmp/robosuite.log"], HOME=str(tmp_path / "home"))
    cache = tmp_path / f"vlaad_ray-{os.getuid()}" / "numba"
    assert str(cache) in said
    assert list(cache.rglob("*.nbc")), "nothing was kept: every simulator would compile anew"
    assert stat.S_IMODE(cache.parent.stat().st_mode) == 0o700


def test_packages_that_can_be_written_to_keep_numbas_cache_as_ever(tmp_path):
    assert run(tmp_path, []).split()[4] == "None"


def test_ray_starts_for_a_user_whose_home_cannot_be_written_to(tmp_path):
    """PermissionError: ~/.ray, where Ray keeps the token of a cluster that it starts."""
    (tmp_path / "home").mkdir(mode=0o500)
    program = """
        import ray
        from vlaad_ray.runtime import cluster
        cluster.connect(num_cpus=1, include_dashboard=False)
        print(ray.get(ray.remote(lambda: 42).remote()))
    """
    unset = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE", "RAY_ADDRESS")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env={**environment, "HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        preexec_fn=without_root_rights,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "42"


def test_code_is_never_taken_from_a_folder_that_others_can_write_to(tmp_path, monkeypatch):
    """numba unpickles what it finds in its cache."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    mine = private_folder()
    assert mine == private_folder()
    mine.chmod(0o777)
    other = private_folder()
    assert other != mine and stat.S_IMODE(other.stat().st_mode) == 0o700
    mine.rmdir()
    mine.symlink_to(tmp_path)
    assert private_folder() not in (mine, tmp_path)
