"""The report of a run: complete, partial, and with broken files. Videos are real MP4s, summaries the stages' own."""

import json
import re
import resource
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest

from vlaad_ray import store
from vlaad_ray.annotate import records, rules
from vlaad_ray.configs import AnnotateConfig, EvalConfig, UserError
from vlaad_ray.envs import find_suite
from vlaad_ray.evaluate import outcomes as evaluate
from vlaad_ray.evaluate import video
from vlaad_ray.evaluate.metrics import find_metrics
from vlaad_ray.report import charts, page, write_report
from vlaad_ray.rollout.outcome import store_outcome
from vlaad_ray.runtime.record import write_run_record
from vlaad_ray.semantics.phases import PHASES
from vlaad_ray.summaries import CollectSummary, EpisodeCounts, EvalSummary, SplitCounts, TaskCounts, TrainSummary
from vlaad_ray.types import Episode, EpisodeKey, InitState, Outcome

STEPS = 60
INSTRUCTION = "pick up the <b>alphabet soup</b> & place it in the basket"
"""With characters that must not reach the page as markup."""


def make_episode(state: int) -> Episode:
    """Down, close, up, across, open; an image every other step."""
    proprio = np.zeros((STEPS, 8), np.float32)
    proprio[:, 2] = 0.2 + 0.1 * np.abs(np.linspace(-1, 1, STEPS))
    proprio[:, 1] = np.linspace(-0.2, 0.2, STEPS)
    closed = (np.arange(STEPS) > 25) & (np.arange(STEPS) < 50)
    proprio[:, 6], proprio[:, 7] = np.where(closed, 0.015, 0.04), np.where(closed, -0.015, -0.04)
    actions = np.zeros((STEPS, 7), np.float32)
    actions[:, 6] = np.where(closed, 1, -1)
    image = np.full((32, 32, 3), 90, np.uint8)
    images = tuple(image if step % 2 == 0 else None for step in range(STEPS))
    return Episode(
        key=EpisodeKey("libero_object", 0, InitState("stored", state), "scripted", 0, "0" * 8),
        instruction=INSTRUCTION,
        proprio=proprio,
        actions=actions,
        executed=actions,
        phases=("approaching",) * 20 + ("grasping",) * 8 + ("transporting",) * 22 + ("placing",) * 10,
        images={"agentview": images, "wrist": images},
        success_step=55,
        success_final=True,
        budget=280,
    )


def write_evaluation(run: Path, folder: str, policy: str, successes: list[bool], baseline: Path | None) -> None:
    """As jobs/eval.py leaves it, from made-up outcomes: two tasks, half the starts each."""
    out = run / folder
    for i, success in enumerate(successes):
        task, state = divmod(i, len(successes) // 2)
        key = EpisodeKey("libero_object", task, InitState("stored", 20 + state), policy, 0, "1" * 8)
        episode = Episode(**{**vars(make_episode(0)), "key": key, "success_step": 55 if success else None})
        store_outcome(out, find_metrics(find_suite("libero_object").metrics), episode)
        if i in (0, len(successes) - 1):
            frames = [video.frame({"agentview": np.full((32, 32, 3), 4 * t, np.uint8)}, f"{t}") for t in range(10)]
            video.write_mp4(out / "videos" / f"{key.name}.mp4", frames, fps=10)
    config = EvalConfig(policy=policy, out=out)
    write_run_record(out, config)
    outcomes = store.read_outcomes(out, Outcome)
    results = list(outcomes.values())
    per_240, per_episode = evaluate.flips(results)
    summary = EvalSummary(
        policy=policy,
        suite=config.suite,
        init_states=config.init_states,
        budget=280,
        success=evaluate.success(results),
        tasks=evaluate.by_task(results),
        gripper_flips_per_240=per_240,
        gripper_flips_per_episode=per_episode,
        steps_mean=evaluate.steps_mean(results),
        paired=None if baseline is None else evaluate.compare(results, evaluate.read_results(baseline)),
        episodes=tuple(outcomes),
    )
    store.write_summary(out, summary)


def write_run(run: Path) -> Path:
    annotate_config = AnnotateConfig(data=run / "data", out=run / "annotations")
    counted = []
    for state in range(3):
        episode = make_episode(state)
        store.write_episode(run / "data", episode, {})
        annotation = rules.by_rules(episode, rules.nine_phases(episode), 9)
        store.write_annotation(run / "annotations", annotation, {"annotator": "rules"})
        counted.append({"skipped": False, **records.count(episode, annotation, 9)})
    store.write_summary(run / "annotations", records.summarise(counted, annotate_config))
    collected = CollectSummary(
        suite="libero_object",
        teacher="scripted",
        episodes=EpisodeCounts(planned=4, kept=3, failed=1, retried=0, lost=0),
        tasks={"0": TaskCounts(kept=3, failed=1)},
        frames=3 * STEPS,
        new_steps=4 * STEPS,
        seconds=7.6,
        steps_per_second=31.5,
        lost=(),
    )
    store.write_summary(run / "data", collected)
    lines = []
    for epoch in range(1, 5):
        metrics = {
            "loss": 9.0 / epoch,
            "loss_full": 4.0 / epoch,
            "loss_image": 5.0 / epoch,
            "near_by_dimension": [0.1 * epoch] * 7,
            "near_by_phase": {"grasping": 0.2 * epoch, **({"placing": 0.5} if epoch > 2 else {})},
        }
        lines.append(json.dumps({"epoch": epoch, "train": metrics, "validation": metrics, "a_later_key": None}))
    (run / "train").mkdir()
    (run / "train" / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    trained = TrainSummary(
        checkpoint=str(run / "train" / "checkpoint"),
        objective="dual_path",
        episodes=SplitCounts(train=3, validation=0),
        epochs=4,
        steps=80,
        train={},
        validation={},
        samples_per_second=600.0,
        training_seconds=8.0,
        seconds=9.0,
    )
    store.write_summary(run / "train", trained)
    write_evaluation(run, "eval_teacher", "scripted", [True] * 20, None)
    write_evaluation(run, "eval_student", "student-12345678", [True] * 18 + [False] * 2, run / "eval_teacher")
    store.write_json(run / "summary.json", {"seconds": {"collect": 240.0, "train": 480.0}})
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "demo")


@pytest.fixture(scope="module")
def html(run: Path) -> str:
    return write_report(run).read_text()


class Page(HTMLParser):
    """Collects addresses and checks that tags close in order."""

    VOID = frozenset({"meta", "br", "img", "input", "link", "hr"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value for name, value in attrs if name in ("src", "href") and value]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_whole_run_is_on_the_page(html: str) -> None:
    assert "Student: 18/20 = 90.0 % [69.9, 97.2]" in html
    assert "teacher: 20/20 = 100.0 % [83.9, 100.0]" in html
    assert "exact McNemar p = 0.5" in html
    assert 'class="not-run"' not in html
    assert "12.0 minutes in all" in html
    assert html.count("<video") == 4


def test_the_page_needs_no_other_file_and_its_markup_closes(html: str) -> None:
    """Catches a link to a server, an absolute path, and an instruction that is taken for markup."""
    addresses = Page(html).addresses
    assert addresses and all(address.startswith("data:") for address in addresses)
    assert "http" not in re.sub(r"base64,[A-Za-z0-9+/=]+", "", html)
    assert "<b>alphabet" not in html and "&lt;b&gt;alphabet soup&lt;/b&gt; &amp; place" in html
    assert not [points for points in re.findall(r'points="([^"]*)"', html) if "n" in points]  # nan


@pytest.mark.parametrize(
    ("folder", "said"),
    [
        ("data", "jobs/collect.py</code> makes this part"),
        ("annotations", "jobs/annotate.py</code> makes this part"),
        ("train", "jobs/train.py</code> makes this part"),
        ("eval_teacher", "jobs/eval.py for both teacher and student</code> makes this part"),
        ("eval_student", "No student has been evaluated yet"),
    ],
)
def test_a_missing_stage_is_shown_as_not_run(run: Path, tmp_path: Path, folder: str, said: str) -> None:
    """A report is often wanted half-way: whichever stage is missing, the others still make a page."""
    partial = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns(folder))
    text = write_report(partial).read_text()
    assert said in text
    Page(text)


def test_an_empty_run_gives_a_page_of_parts_to_come(tmp_path: Path) -> None:
    text = write_report(tmp_path).read_text()
    assert text.count('class="not-run"') == 9
    Page(text)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("summary.json", "{"),
        ("data/summary.json", "[]"),
        ("annotations/summary.json", '{"frames": 3}'),
        ("train/metrics.jsonl", '{"epoch": 1, "train": {}, "validation": {}}\n{"epoch": 2, "tr'),
        ("eval_student/summary.json", '{"success": {}}'),
        ("eval_teacher/outcomes/{first}", "half"),
        ("data/episodes/{first}", "PAR1 and then nothing"),
    ],
)
def test_a_corrupt_file_is_named_and_the_old_page_stays(run: Path, tmp_path: Path, name: str, content: str) -> None:
    run = shutil.copytree(run, tmp_path / "run")
    before = write_report(run).read_bytes()
    folder = (run / name).parent
    path = sorted(folder.iterdir())[0] if "{first}" in name else run / name
    path.write_text(content)
    with pytest.raises(UserError, match=re.escape(str(path))) as raised:
        write_report(run)
    assert "\n" not in str(raised.value)
    assert (run / "report.html").read_bytes() == before
    assert not list(run.glob(".*"))


def test_as_a_command_it_prints_the_path_or_one_line(run: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vlaad_ray.report"]
    good = subprocess.run([*command, str(run)], capture_output=True, text=True, check=True)
    assert good.stdout.strip() == str(run / "report.html")
    bad = subprocess.run([*command, str(tmp_path / "nowhere")], capture_output=True, text=True)
    assert bad.returncode == 2 and bad.stderr.startswith("error: ") and bad.stderr.count("\n") == 1


def test_a_big_video_is_linked_relative_to_the_page(tmp_path: Path) -> None:
    """A run folder must survive being moved or zipped: no absolute path in the page."""
    film = tmp_path / "eval" / "videos" / "a b.mp4"
    film.parent.mkdir(parents=True)
    film.write_bytes(bytes(10))
    assert 'src="eval/videos/a b.mp4"' in page.video(film, tmp_path / "report.html", "", may_embed=False)


@pytest.mark.parametrize("shape", [(64, 96, 3), (33, 51, 3)])
def test_videos_play_in_browsers(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """Browsers refuse yuv444p; odd sizes make x264 fail; the index at the end delays playing."""
    frames = np.stack([np.full(shape, 8 * t, np.uint8) for t in range(25)])
    path = video.write_mp4(tmp_path / "x.mp4", frames, fps=10)
    about = next(imageio_ffmpeg.read_frames(path))
    assert about["codec"] == "h264" and about["pix_fmt"].startswith("yuv420p")
    assert about["fps"] == 10 and about["duration"] == pytest.approx(2.5)
    assert about["size"] == (shape[1] + shape[1] % 2, shape[0] + shape[0] % 2)
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


def test_a_video_that_fails_half_way_leaves_nothing(tmp_path: Path) -> None:
    frames = [np.zeros((16, 16, 3), np.uint8), np.zeros((16, 18, 3), np.uint8)]
    with pytest.raises(ValueError, match="one size"):
        video.write_mp4(tmp_path / "x.mp4", frames, fps=10)
    with pytest.raises(ValueError, match="at least one frame"):
        video.write_mp4(tmp_path / "x.mp4", [], fps=10)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["2026-07-01T12:30", "http:", "100%d %05d", "-y", "a b #?'é&"])
def test_a_video_may_lie_below_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """ffmpeg takes what stands before a colon for a protocol, and what begins with a dash for an option."""
    monkeypatch.chdir(tmp_path)
    path = video.write_mp4(Path(name) / "x.mp4", np.zeros((3, 16, 16, 3), np.uint8), fps=10)
    assert [each.name for each in (tmp_path / name).iterdir()] == ["x.mp4"]
    assert path.read_bytes()[4:8] == b"ftyp"


def test_a_video_that_ffmpeg_could_not_finish_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    """What is buffered is written when all frames are through: a full disk showed in ffmpeg's status alone."""
    frames = np.random.default_rng(0).integers(0, 255, (20, 128, 128, 3), dtype=np.uint8)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(video.VideoError, match="ffmpeg could not write it: "):
            video.write_mp4(tmp_path / "x.mp4", frames, fps=10)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


def test_a_captioned_frame_keeps_the_cameras_whole() -> None:
    red, blue = np.full((64, 64, 3), (255, 0, 0), np.uint8), np.full((64, 64, 3), (0, 0, 255), np.uint8)
    frame = video.frame({"agentview": red, "wrist": blue}, "step 3", scale=2)
    assert frame.shape == (128 + video.CAPTION_HEIGHT, 256, 3)
    assert frame[5, 5].tolist() == [255, 0, 0] and frame[5, 250].tolist() == [0, 0, 255]
    assert frame[128:].max() > 150  # there is something to read


def test_every_phase_has_a_colour_of_its_own() -> None:
    assert len({charts.PHASE_COLOURS[phase] for phase in PHASES}) == len(PHASES)


@pytest.mark.parametrize(("low", "high"), [(0, 0), (0, 1e-6), (0, 7.3), (0.9, 1.17), (1, 1), (1, 2), (3, 4000)])
def test_axes_have_a_few_round_ticks_that_cover_the_data(low: float, high: float) -> None:
    at = charts.covering_ticks(low, high)
    assert 2 <= len(at) <= 9 and at[0] <= low and at[-1] >= high
    assert all(tick == int(tick) for tick in charts.whole_ticks(low, high))
