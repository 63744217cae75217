"""The contact sheet, from answers that go through the real audit: what a person sees, decides and gets back."""

import base64
import functools
import io
import json
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlaad_ray import store
from vlaad_ray.annotate import asking, check, kinds, merge, prompts, questions, records, rules
from vlaad_ray.annotate.questions import Work
from vlaad_ray.annotate.windows import Window
from vlaad_ray.configs import AnnotateConfig, UserError, VlmConfig
from vlaad_ray.report import learning, write_contact_sheet
from vlaad_ray.runtime.over_episodes import try_episode
from vlaad_ray.semantics import phases
from vlaad_ray.summaries import Decisions, Faults, Forecast, Tokens, VlmSeconds, VlmSummary
from vlaad_ray.types import Episode, EpisodeKey, InitState

STEPS = 100
SCRIPT = "<script>alert(1)</script>"
INSTRUCTION = "pick up the <b>milk</b> and place it in the basket"
DOWN, UP, LEFT = (0, 25), (35, 55), (55, 85)
"""Frames in which the hand goes 25 cm down, 20 cm up and 30 cm to the robot's left, the picture's right."""


def answers() -> dict[str, tuple[Window, dict[str, str]]]:
    """Request -> window and answer, in no helpful order; left and right are the viewer's."""

    def direct(frames: tuple[int, int], element: str, direction: str) -> tuple[Window, dict[str, str]]:
        first, last = frames
        shown = tuple(range(first, last, 6))[:5]
        return Window("direct", first, last, "transporting", shown), {"element": element, "direction": direction}

    def describe(frames: tuple[int, int], phase: str, text: str) -> tuple[Window, dict[str, str]]:
        return Window("describe", *frames, phase, (sum(frames) // 2,)), {"description": text}

    return {
        "right": direct(LEFT, "the milk", "moving right"),
        "phase": describe(DOWN, "approaching", "releasing the milk"),
        "across": direct(DOWN, "the milk", "moving left"),
        "element": direct(UP, "the stove", "moving up"),
        "opposite-20": direct(UP, "the milk", "moving down"),
        "good": describe(UP, "transporting", "lifting the milk"),
        "opposite-30": direct(LEFT, "the milk", "moving left"),
    }


WORST = ["opposite-30", "opposite-20", "across", "element", "phase"]


def write_audited(root: Path, decisions: Mapping[str, str]) -> AnnotateConfig:
    """A dataset of one episode and its annotation, as jobs/annotate.py leaves them."""
    config = AnnotateConfig(data=root / "data", out=root / "run" / "annotations", annotator="vlm", vlm=VlmConfig())
    proprio = np.zeros((STEPS, 8), np.float32)
    proprio[:, 2] = np.interp(np.arange(STEPS), [0, 25, 35, 55, 100], [0.3, 0.05, 0.05, 0.25, 0.25])
    proprio[:, 1] = np.interp(np.arange(STEPS), [55, 85], [0, 0.3])
    closed = (np.arange(STEPS) >= 26) & (np.arange(STEPS) < 90)
    proprio[:, 6], proprio[:, 7] = np.where(closed, 0.015, 0.04), np.where(closed, -0.015, -0.04)
    actions = np.zeros((STEPS, 7), np.float32)
    actions[:, 6] = np.where(closed, 1, -1)
    images = {"agentview": tuple(np.full((16, 16, 3), 2 * step, np.uint8) for step in range(STEPS))}
    key = EpisodeKey("libero_object", 7, InitState("stored", 0), "scripted", 0, "00000000")
    episode = Episode(key, INSTRUCTION, proprio, actions, actions, (None,) * STEPS, images, 95, True, 280)
    path = store.write_episode(config.data, episode, {})

    stored = {
        request: {**vars(window), "request": request, "text": json.dumps(said), "problem": None, "attempts": 1}
        for request, (window, said) in answers().items()
    }
    questions = {request: window for request, (window, _) in answers().items()}
    said = {
        request: kinds.parse(stored[request]["text"], None, window.kind, "viewer")
        for request, window in questions.items()
    }
    nine = rules.nine_phases(episode)
    work = Work(path, key.name, key.suite, key.task, INSTRUCTION, STEPS, 0, nine, questions, stored, said)
    finished = merge.finish(work, config, "a-vlm@1234", {}, decisions)
    stored["good"]["text"] += SCRIPT  # no schema lets it through; a server without one might
    store.write_answers(config.out, key.name, list(stored.values()))
    store.write_audit(config.out, finished.audit)
    store.write_accepted(config.out, finished.audit)
    summary = VlmSummary(
        **vars(records.summarise([finished.record], config)),
        model="a-vlm@1234",
        questions=8,
        vlm_calls=9,
        valid=len(finished.audit),
        flagged=dict(finished.flagged),
        faults=Faults(corrupt_images=0, asked_again=1, engine_failures=0),
        audit=check.summarise(finished.audit),
        tokens=Tokens(prompt=900, generated=90),
        seconds_by_stage=VlmSeconds(plan=1.0, ask=2.0, audit=3.0),
        frames_per_second=50.0,
        forecast=Forecast(frames=81_000, vlm_calls=7290, hours=0.45, gpu_hours=None, paper_usd=7.0),
    )
    store.write_summary(config.out, summary)
    return config


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> AnnotateConfig:
    return write_audited(tmp_path_factory.mktemp("audited"), {})


class Page(HTMLParser):
    """Requests and pictures in order, addresses, text of script elements; tags must close in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.requests: list[str] = []
        self.pictures: dict[str, list[bytes]] = {}
        self.addresses: list[str] = []
        self.scripts: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        self.addresses += [value for name, value in attributes if name in ("src", "href", "action") and value]
        if tag == "article":
            self.requests.append(str(found["data-request"]))
        if tag == "img":
            data = str(found["src"]).removeprefix("data:image/jpeg;base64,")
            self.pictures.setdefault(self.requests[-1], []).append(base64.b64decode(data))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)


def sheet(config: AnnotateConfig, count: int = 40, seed: int = 0) -> str:
    return write_contact_sheet(config.out, config.data, count, seed).read_text()


def test_every_answer_stands_there_once_worst_first_with_the_pictures_that_the_vlm_saw(config):
    """Catches a contradiction that the sample shows a second time, and pictures of other frames or out of order."""
    page = Page(sheet(config))
    assert page.requests[: len(WORST)] == WORST
    assert sorted(page.requests) == sorted(answers())
    pictures = store.read_pictures(store.list_episodes(config.data)[0])
    for request, (window, _) in answers().items():
        assert page.pictures[request] == [pictures[step] for step in window.frames]
    for data in page.pictures["good"]:
        assert Image.open(io.BytesIO(data)).convert("RGB").size == (16, 16)


def test_a_short_sheet_has_the_worst_and_a_fixed_draw_from_all(config):
    first, again, other = (Page(sheet(config, 2, seed)).requests for seed in (0, 0, 1))
    assert first[:2] == WORST[:2] and 2 <= len(first) <= 4
    assert first == again != other


def test_the_page_says_what_was_told_answered_and_done(config):
    text = sheet(config)
    card = text[text.index('data-request="opposite-30"') : text.index('data-request="opposite-20"')]
    assert "30.0 cm: 0.0 cm forward, 30.0 cm left, 0.0 cm up (robot's base frame)" in card
    assert "<h3>the milk: moving left, as seen in the pictures</h3>" in card
    assert (
        "moving right, as seen in the pictures (moving left in the robot&#x27;s base frame; the answer: moving right)"
        in card
    )
    assert "&quot;direction&quot;: &quot;moving left&quot;" in card
    assert 'direction: <b class="contradict">contradict</b>, element: <b class="agree">agree</b>' in card
    assert "frames 55-84 (1.5 s)" in card and "phase by the rules: transporting" in card
    prompt = card[card.index("<pre>") : card.index("</pre>")]
    assert prompt.index("[picture of step 55]") < prompt.index("[picture of step 79]") < prompt.index("The 5 pictures")
    assert "asked again" in text and "9 VLM calls" in text and "2/7 = 28.6 %" in text


def test_nothing_comes_from_elsewhere_and_no_text_becomes_markup(config):
    text = sheet(config)
    page = Page(text)
    assert page.addresses and all(address.startswith("data:image/jpeg;base64,") for address in page.addresses)
    assert not re.search(
        r"https?:|//[a-z]|url\(|@import", re.sub(r"base64,[A-Za-z0-9+/=]+", "", text).split("<script>")[0]
    )
    assert len(page.scripts) == 2
    assert SCRIPT not in text and "&lt;script&gt;alert(1)" in text
    assert "<b>milk" not in text and "&lt;b&gt;milk" in text
    assert "nan" not in "".join(re.findall(r'(?:points|x1|y2|cx)="([^"]*)"', text))


KEYS = """
const listeners = {}, stored = {}, elements = {};
const element = (more) => ({ addEventListener() {}, focus() { document.activeElement = this; }, scrollIntoView() {},
  closest() { return this.dataset ? this : null; }, querySelectorAll: () => [], ...more });
const articles = REQUESTS.map((request) => element({ dataset: { request, sampled: "1" } }));
globalThis.localStorage = { getItem: (key) => stored[key] ?? null, setItem: (key, value) => { stored[key] = value; } };
globalThis.document = { ...element(), activeElement: element(), querySelectorAll: () => articles,
  getElementById: (id) => (elements[id] ??= element({ textContent: id === "decisions" ? DECISIONS : "" })),
  addEventListener: (kind, listener) => { listeners[kind] = listener; } };
SCRIPT
const press = (key, more) => listeners.keydown({ key, ...more });
for (const key of "jajrrjjrka") press(key);
press("r", { ctrlKey: true });
console.log(exported());
"""
"""First: accept. Second: reject, undo. Fourth: reject. Third: accept. Then the browser's own Ctrl+R."""


@pytest.mark.skipif(shutil.which("node") is None, reason="node runs the page's script here")
def test_what_is_decided_with_the_keyboard_reaches_training_labels_and_the_next_sheet(config, tmp_path):
    """From the first round's sheet over its export to accepted labels. Catches a reload (Ctrl+R) that rejects, an undo
    that stays, and a second round that forgets the first.
    """
    page = Page(sheet(config))
    script = KEYS.replace("REQUESTS", json.dumps(page.requests)).replace(
        "DECISIONS", json.dumps('{"earlier": "rejected"}')
    )
    (tmp_path / "sheet.js").write_text(script.replace("SCRIPT", page.scripts[1]))
    done = subprocess.run(["node", tmp_path / "sheet.js"], capture_output=True, text=True, check=True)
    (tmp_path / "decisions.json").write_text(done.stdout)

    decisions = merge.read_decisions(tmp_path / "decisions.json")
    assert decisions == {WORST[0]: "accepted", WORST[2]: "accepted", WORST[3]: "rejected", "earlier": "rejected"}
    judged = write_audited(tmp_path, decisions)
    assert merge.count_decisions(decisions, store.read_audit(judged.out)) == Decisions(
        accepted=2, rejected=1, unknown=1
    )
    gold = {row["request"]: row for row in store.read_accepted(judged.out)}
    assert set(gold) == {WORST[0], WORST[2]}
    assert gold["opposite-30"]["direction"] == "moving right" and gold["opposite-30"]["instruction"] == INSTRUCTION
    embedded = json.loads(Page(sheet(judged)).scripts[0])
    assert embedded == {name: said for name, said in decisions.items() if name != "earlier"}


def test_a_sheet_for_another_dataset_is_refused_in_one_line(config, tmp_path):
    """Pictures of another episode beside an answer would make a person judge nonsense."""
    other = write_audited(tmp_path, {})
    path = store.list_episodes(other.data)[0]
    path.rename(path.with_name("another.parquet"))
    with pytest.raises(UserError, match="check --data"):
        sheet(other)
    path.with_name("another.parquet").rename(path)
    short = replace(store.read_episode(path), images={"agentview": (None,) * STEPS})
    store.write_episode(other.data, short, {})
    with pytest.raises(UserError, match="does not fit"):
        sheet(other)
    (other.out / "summary.json").unlink()
    with pytest.raises(UserError, match="holds no summary"):
        sheet(other)


def test_the_report_of_a_run_shows_the_audit(config):
    run = config.out.parent
    sheet(config)
    text = learning.vlm(run)
    assert "2/7 = 28.6 %" in text and 'href="annotations/contact_sheet.html"' in text
    assert "contradicted by the robot&#x27;s motion" in text
    ruled = records.summarise([], AnnotateConfig(config.data, run / "other" / "annotations"))
    store.write_summary(run / "other" / "annotations", ruled)
    assert learning.vlm(run / "other") == ""


def test_an_episode_is_classified_once_answers_parsed_once_and_one_camera_decoded(tmp_path, monkeypatch):
    """Planning, its answers and merging each did it again: two cameras decoded for one that is shown."""
    config = write_audited(tmp_path, {})
    (path,) = store.list_episodes(config.data)
    for name in ("answers", "annotations"):
        shutil.rmtree(config.out / name, ignore_errors=True)
    done = Counter()

    def counted(module, name):
        function = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args: done.update([name]) or function(*args))

    counted(phases, "classify")
    counted(kinds, "parse")
    counted(questions, "_decodes")
    plan_one = functools.partial(questions.plan_episode, config=config, revision="a-vlm@1234")
    work = questions.read_work(try_episode(path, plan_one))
    for request, window in work.questions.items():
        text = '{"element": "the drawer", "direction": "moving nearer"}'
        if window.kind == "describe":
            text = json.dumps({"description": f"{prompts.verbs(window.phase)[0]} the drawer"})
        answer = {"request": request, "text": text, "problem": "", "finish": "stop"}
        asking._take({**answer, "prompt_tokens": 1, "generated_tokens": 1}, work, config.vlm, 0, asking.Spent())
    finished = merge.finish(
        questions.read_work(json.loads(json.dumps(questions.work_record(work)))), config, "a-vlm@1234", {}, {}
    )
    assert len(finished.audit) == len(work.questions)
    assert done == {"classify": 1, "parse": len(work.questions), "_decodes": STEPS}
