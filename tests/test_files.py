"""Files on a disk and in an object store: whole or not at all, listed at once, and every trouble said in one line."""

import json
import multiprocessing
import os
import pickle
import socket
import stat
import subprocess
import sys
from pathlib import Path

import moto.settings
import pytest
import torch
from fakes import episode
from s3fs import S3FileSystem
from safetensors.torch import save_file

from vlaad_ray import files, store
from vlaad_ray.annotate.engines import model_revision
from vlaad_ray.configs import UserError, VlmConfig, location
from vlaad_ray.files import remote, writing
from vlaad_ray.teachers import fingerprint
from vlaad_ray.types import Collected


@pytest.fixture(params=["disk", "s3"])
def place(request, tmp_path):
    """An empty folder of either kind."""
    if request.param == "disk":
        return tmp_path
    folder = request.getfixturevalue("s3").bucket("files") / tmp_path.name
    files.remove_tree(folder)
    return folder


# ------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("runs/x", Path("runs/x")),
        ("2026-07-01T12:30", Path("2026-07-01T12:30")),
        ("./s3:/x", Path("s3:/x")),
        ("file:///a%20b/c", Path("/a b/c")),
        ("file://localhost/a", Path("/a")),
        ("s3://bucket/x", "s3://bucket/x"),
        ("S3A://bucket//x/./y/../z/", "s3://bucket/x/z"),
        ("s3://bucket", "s3://bucket/"),
        ("memory://a//b", "memory://a/b"),
    ],
)
def test_a_place_is_called_the_same_however_it_is_written(text, meant):
    """Two spellings of one place would be two places: data twice, and a dataset overwritten by its own repair."""
    found = location(text)
    assert (found if isinstance(meant, Path) else str(found)) == meant
    again = pickle.loads(pickle.dumps(found))
    assert (again, str(again)) == (found, str(found))
    if not isinstance(meant, Path):
        assert json.loads(json.dumps({"out": found}, default=str)) == {"out": meant}
        assert location(str(found / "z")) == found / "z"
        assert not again.fs.storage_options["use_listings_cache"], "what another process wrote would never be seen"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("s3:/bucket/x", "as s3://bucket/x"),
        ("s3://", "names no bucket"),
        ("ftp://host/x", "nothing is known of ftp://"),
        ("file://host/x", "on the host host"),
        ("gs://bucket/x", "pip install 'gcsfs'"),
    ],
)
def test_a_uri_that_cannot_be_used_is_no_local_folder(text, complaint):
    """s3://b/x once became the folder s3:/b/x, and the data seemed to be lost."""
    with pytest.raises(UserError, match=r"^[^\n]+$") as raised:
        location(text)
    assert complaint in str(raised.value)


def test_a_scheme_whose_package_is_missing_says_what_to_install():
    script = (
        "import sys; sys.modules['s3fs'] = None\n"
        "from vlaad_ray.configs import UserError, location\n"
        "try: location('s3://b/x')\n"
        "except UserError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (
        done.stdout == "s3://b/x needs the package s3fs, which is not installed; type: pip install 'vlaad-ray[s3]'\n"
    ), done.stderr


# ----------------------------------------------------------------------------------------------------------- trouble


def complaint(asked):
    with pytest.raises(UserError, match=r"^[^\n]+$") as raised:
        asked()
    return str(raised.value)


def test_a_bucket_that_is_not_there_is_said_before_work_starts(s3):
    bucket = s3.bucket("files")
    files.reach(bucket / "nothing here yet")
    assert "bucket does not exist; make it first" in complaint(lambda: files.reach(location("s3://no-bucket/x")))


def test_credentials_that_are_refused_are_said(s3, monkeypatch):
    place = s3.bucket("files") / "x"
    monkeypatch.setattr(moto.settings, "INITIAL_NO_AUTH_ACTION_COUNT", 0.0)
    for asked in (files.reach, lambda place: files.write_json(place, {}), files.read_json):
        assert "s3://files/x: access refused" in complaint(lambda asked=asked: asked(place))


def test_no_credentials_are_said(s3, monkeypatch, tmp_path):
    place = s3.bucket("files") / "x"
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    S3FileSystem.clear_instance_cache()
    assert "Unable to locate credentials" in complaint(lambda: files.reach(location(str(place))))
    monkeypatch.undo()
    S3FileSystem.clear_instance_cache()


@pytest.mark.parametrize("silent", [False, True], ids=["nobody listens", "somebody says nothing"])
def test_an_endpoint_that_does_not_answer_is_said_within_seconds(s3, monkeypatch, silent):
    """A client that tries for ever looks like a job that works."""
    monkeypatch.setattr(remote, "ANSWER_S", 5.0 if not silent else 0.5)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if silent:
            listener.listen()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{listener.getsockname()[1]}")
        S3FileSystem.clear_instance_cache()
        assert "the store cannot be used" in complaint(lambda: files.reach(location("s3://files/x")))
    monkeypatch.undo()
    S3FileSystem.clear_instance_cache()


# ----------------------------------------------------------------------------------------------------------- writing


def test_a_file_appears_whole_or_not_at_all(place):
    target = place / "folder" / "x.json"
    with pytest.raises(KeyboardInterrupt), files.replacing(target) as temporary:
        temporary.write_text("{")
        raise KeyboardInterrupt
    assert files.children(place / "folder", "") == []
    files.write_json(target, {"a": 1})
    files.write_json(target, {"a": 2})
    assert files.read_json(target) == {"a": 2}
    assert [path.name for path in (place / "folder").iterdir()] == ["x.json"], "nothing is left behind"


def test_a_large_file_goes_up_in_parts_and_appears_at_the_end(s3, monkeypatch):
    """A multi-part upload must not show its first parts; one that breaks must leave the old file."""
    target = s3.bucket("files") / "large"
    files.write_json(target, "old")
    with s3.counted() as asked, files.replacing(target) as temporary, temporary.open("wb") as file:
        file.truncate(101 * 2**20)
    assert sum("uploadId" in line for line in asked) >= 3
    assert target.stat().st_size == 101 * 2**20
    assert "PUT /files/large HTTP" not in " ".join(asked)


def test_processes_of_one_number_on_two_machines_do_not_collide(tmp_path, monkeypatch):
    """Containers count their processes from 1: two pods with one disk wrote the same temporary file."""
    monkeypatch.setattr(os, "getpid", lambda: 7)
    target = tmp_path / "x"
    with files.replacing(target) as one:
        with files.replacing(target) as other:
            assert one != other
            one.write_text("one")
            other.write_text("other")
        assert target.read_text() == "other"
    assert target.read_text() == "one"
    monkeypatch.setattr(writing.socket, "gethostname", lambda: "pod-a")
    assert ".pod-a.7." in writing._beside(target).name


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_file_modes_are_what_the_umask_says(tmp_path, umask):
    """safetensors makes its files 0600: nobody else on a shared volume could load a checkpoint."""
    before = os.umask(umask)
    try:
        with files.replacing(tmp_path / "a.safetensors") as temporary:
            save_file({"x": torch.zeros(1)}, temporary)
        with files.replacing_directory(tmp_path / "ck", "config.json") as folder:
            save_file({"x": torch.zeros(1)}, folder / "model.safetensors")
            (folder / "config.json").write_text("{}")
    finally:
        os.umask(before)
    for path in (tmp_path / "a.safetensors", tmp_path / "ck" / "model.safetensors", tmp_path / "ck" / "config.json"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask, path


def write_folder(place, content):
    with files.replacing_directory(place, "config.json") as folder:
        (folder / "config.json").write_text(content)
        (folder / "weights").write_text(content)
        (folder / f"only in {content}").write_text("")


def test_a_folder_is_replaced_with_nothing_left_of_the_old(place):
    for content in ("old", "new"):
        write_folder(place / "ck", content)
    with files.local_copy(place / "ck") as folder:
        found = {path.name: path.read_text() for path in folder.iterdir()}
    assert found == {"config.json": "new", "weights": "new", "only in new": ""}
    with pytest.raises(KeyboardInterrupt), files.replacing_directory(place / "ck", "config.json") as folder:
        raise KeyboardInterrupt
    assert (place / "ck" / "config.json").read_text() == "new"
    assert [path.name for path in place.iterdir()] == ["ck"]


def test_a_folder_half_uploaded_has_no_marker(s3, monkeypatch):
    """A writer that dies in the middle must leave what readers refuse, not new weights with an old config."""
    place = s3.bucket("files") / "half"
    write_folder(place, "old")

    def die(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(place.fs, "put", die)
    with pytest.raises(KeyboardInterrupt):
        write_folder(place, "new")
    assert not (place / "config.json").exists()


def replace_often(place, content, times):
    for _ in range(times):
        write_folder(place, content)


def test_two_writers_of_one_folder_both_come_through(tmp_path):
    """Between removing the old folder and renaming the new one, another writer's may be there already."""
    writers = [multiprocessing.Process(target=replace_often, args=(tmp_path / "ck", name, 60)) for name in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    content = (tmp_path / "ck" / "config.json").read_text()
    assert {path.name for path in (tmp_path / "ck").iterdir()} == {"config.json", "weights", f"only in {content}"}
    assert [path.name for path in tmp_path.iterdir()] == ["ck"]


# ----------------------------------------------------------------------------------------------------------- reading


def test_hidden_files_are_not_listed(place):
    files.write_json(place / "b.json", 1)
    files.write_json(place / "a.json", 1)
    files.write_json(place / ".c.json", 1)
    files.write_json(place / "deeper" / "d.json", 1)
    assert files.children(place, ".json") == [place / "a.json", place / "b.json"]
    assert files.children(place / "nowhere", ".json") == []


def test_a_local_copy_is_shared_and_removed_by_the_last(s3):
    """Each actor of a node would hold the weights once more, in memory and on disk."""
    place = s3.bucket("files") / "shared"
    write_folder(place, "x")
    with files.local_copy(place) as first:
        with s3.counted() as asked, files.local_copy(place) as second:
            assert second == first
        assert not [line for line in asked if "weights" in line], "fetched again"
        assert (first / "weights").read_text() == "x", "removed while it is in use"
    assert not first.exists()
    with files.local_copy(place / "weights") as path:
        assert path.read_text() == "x"
    assert "does not exist" in complaint(lambda: files.local_copy(place / "nothing").__enter__())


def test_a_hash_is_over_the_bytes_wherever_they_lie(place):
    with files.replacing(place / "x") as temporary:
        temporary.write_bytes(b"0123456789")
    whole = "84d89877f0d4041efb6bf91a16f0248f2fd573e6af05c19f96bedb9f882f7882"
    assert files.sha256(place / "x") == whole
    assert files.sha256(b"01234", files.Part(place / "x", 5, 2), files.Part(place / "x", 7, 100)) == whole


def test_names_made_of_weights_stay_what_they_were(place):
    """Episodes and answers are filed under them: another way to hash would collect and ask everything again."""
    for name, data in {
        "config.json": b'{"a": 1}',
        "one.safetensors": bytes(range(256)) * 20_000,
        "two.safetensors": b"short",
    }.items():
        with files.replacing(place / "model" / name) as temporary:
            temporary.write_bytes(data)
    assert fingerprint(place / "model") == "91254873"
    with files.local_copy(place / "model") as folder:
        assert model_revision(str(folder), VlmConfig()) == "model@572afa0fbc05"


# ---------------------------------------------------------------------------------------------------------- datasets


def test_a_dataset_in_a_store_reads_like_one_on_disk(place):
    path = store.write_episode(place, episode(3), {"render": "fast"})
    assert store.list_episodes(place) == [path]
    assert store.read_metadata(path)["content_hash"]
    assert len(store.read_episode(path)) == len(store.read_episode(path, images=False)) == 6
    assert "does not exist" in complaint(lambda: store.read_episode(path.with_name("x.parquet")))
    damaged = path.with_name("y.parquet")
    with files.replacing(damaged) as temporary:
        temporary.write_bytes(files.read_bytes(path)[:2000])
    for read in (store.read_episode, store.read_metadata):
        assert "is corrupt" in complaint(lambda read=read: read(damaged))
    assert "collect it with jobs/collect.py" in complaint(lambda: store.list_episodes(place / "nowhere"))


def test_requests_for_a_dataset(s3, capsys):
    """One listing a folder, and one request for each small record: not one for every question about an episode."""
    root, count = s3.bucket("counted"), 250
    path = store.write_episode(root, episode(3), {})
    names = [f"e{index:04}" for index in range(count)]
    ended = Collected("libero_object", 0, "s0000", True, True, True, True, steps=6)
    list(files.in_parallel(lambda name: store.write_outcome(root, name, ended), names))
    list(files.in_parallel(lambda place: root.fs.cp_file(path.path, place.path), [path.with_stem(n) for n in names]))
    root.fs.rm_file(path.path)
    known = {}
    rows = {}
    for what, ask in (
        ("outcomes", lambda: known.update(store.read_outcomes(root, Collected))),
        ("outcomes again", lambda: store.read_outcomes(root, Collected, known)),
        ("names of episodes", lambda: store.stored_episodes(root)),
        ("facts of episodes", lambda: list(files.in_parallel(store.read_metadata, store.list_episodes(root)))),
        ("an episode without its pictures", lambda: store.read_episode(path.with_stem("e0001"), images=False)),
        ("an episode", lambda: store.read_episode(path.with_stem("e0001"))),
    ):
        with s3.counted() as asked:
            ask()
        rows[what] = len(asked)
    with capsys.disabled():
        print(f"\nrequests for {count} episodes: {rows}")
    assert len(known) == count
    assert rows == {
        "outcomes": 1 + count,
        "outcomes again": 1,
        "names of episodes": 1,
        "facts of episodes": 1 + count,
        "an episode without its pictures": 3,
        "an episode": 3,
    }
