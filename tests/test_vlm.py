"""Annotation by a VLM, for real: vLLM on CPU through Ray Data, vLLM's own server, and a server that misbehaves.

The checkpoint has random weights in Qwen2.5-VL's true architecture and format; the episodes are real.
"""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fakes
import psutil
import pyarrow.parquet as pq
import pytest

from vlaad_ray import collect, store
from vlaad_ray.annotate import annotate, chat_server, engines, rules
from vlaad_ray.annotate.random_checkpoint import write_checkpoint
from vlaad_ray.configs import AnnotateConfig, BenchAuditConfig, CollectConfig, EnvConfig, UserError, VlmConfig
from vlaad_ray.experiments.bench import lies as bench_audit
from vlaad_ray.summaries import AnnotatedCounts

pytestmark = pytest.mark.usefixtures("ray_local")


@pytest.fixture(scope="module")
def data(tmp_path_factory, ray_local):
    """12 real episodes with drawers, bowls and a stove; few and small pictures."""
    out = tmp_path_factory.mktemp("vlm") / "data"
    collect.collect(
        CollectConfig(
            out=out,
            suite="libero_goal",
            tasks="0,7,8,9",
            init_states="0-2",
            image_every=10,
            env=EnvConfig(image_size=48),
        )
    )
    assert len(store.list_episodes(out)) == 12
    return out


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("vlm") / "tiny-qwen2.5-vl")


def some(data, out, count):
    """A dataset of the first episodes of another."""
    (out / "episodes").mkdir(parents=True)
    for path in store.list_episodes(data)[:count]:
        shutil.copy(path, out / "episodes")
    return out


def config_for(data, out, model, **vlm):
    vlm = {"model": str(model), "preset": "cpu", "max_model_len": 2048, "picture_pixels": 56, **vlm}
    return AnnotateConfig(data=data, out=out, annotator="vlm", vlm=VlmConfig(**vlm))


def frames_of(data):
    return {path.stem: store.read_metadata(path)["steps"] for path in store.list_episodes(data)}


def engine_workers():
    """The processes in which Ray runs vLLM's engine."""
    alive = psutil.process_iter(["cmdline"])  # None for what is ending just now
    return [process for process in alive if "vLLMEngineStage" in " ".join(process.info["cmdline"] or ())]


def kill_the_engine_once(out, killed):
    """When the first answers have been stored."""
    deadline = time.monotonic() + 300
    while not list((out / "answers").glob("*.parquet")) and time.monotonic() < deadline:
        time.sleep(0.02)  # waits for the first answers, not for a time
    for worker in engine_workers():
        with contextlib.suppress(psutil.NoSuchProcess):  # it ended since it was listed
            killed += fakes.kill([*worker.children(recursive=True), worker])


def test_the_real_engine_annotates_and_survives_being_killed(data, model, tmp_path):
    config, killed = config_for(data, tmp_path, model), []
    watcher = threading.Thread(target=kill_the_engine_once, args=(tmp_path, killed), daemon=True)
    watcher.start()
    first = annotate(config)
    watcher.join(timeout=1)
    assert killed
    frames = frames_of(data)
    assert first.frames == sum(frames.values()) and first.episodes.annotated == 12
    assert {path.stem: pq.read_table(path).num_rows for path in store.list_annotations(tmp_path)} == frames
    unusable = sum(count for reason, count in first.flagged.items() if not reason.startswith("contradicted"))
    assert first.questions == first.valid + unusable
    assert first.valid > 0.9 * first.questions
    assert first.tokens.generated > 0 and first.seconds_by_stage.ask > 0

    second = annotate(config)
    assert second.vlm_calls == 0
    assert second.episodes == AnnotatedCounts(annotated=0, skipped=12, corrupt=0)
    assert second.audit == first.audit

    dropped = annotate(replace(config, vlm=replace(config.vlm, on_contradiction="drop")))
    assert dropped.vlm_calls == 0
    contradicted = first.flagged["contradicted by the robot's motion"]
    assert dropped.flagged["contradicted by the robot's motion"] == contradicted > 0
    assert "" in {
        text for path in store.list_annotations(tmp_path) for text in store.read_annotation(path).descriptions
    }


@pytest.fixture
def vllm_server(model):
    """vLLM's own OpenAI-compatible server; yields its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--port", str(port)]
    command += ["--host", "127.0.0.1", "--served-model-name", "tiny", "--max-model-len", "2048", "--dtype", "bfloat16"]
    command += ["--enforce-eager", "--limit-mm-per-prompt", json.dumps({"image": 5})]
    command += ["--structured-outputs-config", json.dumps({"backend": "guidance", "disable_any_whitespace": True})]
    settings = {**os.environ, **engines.QUIET, **dict(engines.presets()["cpu"].environment)}
    process = subprocess.Popen(command, env=settings, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    url = f"http://127.0.0.1:{port}"
    for _ in range(240):
        try:
            urllib.request.urlopen(f"{url}/health", timeout=5).close()
            break
        except OSError:
            assert process.poll() is None, process.stdout.read()[-3000:]
            time.sleep(1)
    else:
        process.kill()
        pytest.fail(f"vLLM's server does not answer: {process.communicate()[0][-3000:]}")
    yield f"{url}/v1"
    process.terminate()
    process.wait(timeout=120)


def test_a_running_server_annotates_like_an_engine(data, vllm_server, tmp_path):
    few = some(data, tmp_path / "data", 4)
    summary = annotate(config_for(few, tmp_path / "out", "tiny", server=vllm_server))
    assert summary.valid > 0.9 * summary.questions
    assert summary.vlm_calls >= summary.questions
    assert summary.tokens.prompt > 100 * summary.questions
    with pytest.raises(UserError, match="does not know 'other'; it has tiny"):
        annotate(config_for(few, tmp_path / "out", "other", server=vllm_server))


class Misbehaving:
    """A server that answers some questions with garbage, with errors, or at the second try only.

    `behave` says with which status and what: the text of an answer or error, a message, or the body as it is.
    """

    def __init__(self, behave, models=b'{"data": [{"id": "fake"}]}'):
        self.behave, self.tries = behave, {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.reply(200, models)

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                question = json.dumps(json.loads(body)["messages"])
                outer.tries[question] = outer.tries.get(question, 0) + 1
                status, said = outer.behave(list(outer.tries).index(question), outer.tries[question], question)
                usage = {"prompt_tokens": 7, "completion_tokens": 3}
                message = said if isinstance(said, dict) else {"content": said}
                if isinstance(said, bytes):
                    self.reply(status, said)
                elif status == 200:
                    self.reply(status, {"choices": [{"message": message}], "usage": usage})
                else:
                    self.reply(status, {"error": {"message": said}})

            def reply(self, status, content):
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_port}/v1"

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


def good(question):
    if "Which way" in question:
        return '{"element": "the drawer", "direction": "moving nearer"}'
    return '{"description": "reaching the drawer"}'


def one_in_five_is_malformed(index, tries, question):
    if index % 5 == 0:
        return 200, '{"description": '
    if index % 5 == 1 and tries == 1:
        return 200, "sorry, I cannot see the picture"
    return (400, "maximum context length is 17 tokens") if index == 2 else (200, good(question))


def test_faults_are_counted_and_no_row_is_lost(data, tmp_path):
    few = some(data, tmp_path / "data", 6)
    for path in store.list_episodes(few)[:3]:
        corrupt_first_picture(path)
    before = frames_of(few)
    with Misbehaving(one_in_five_is_malformed) as url:
        summary = annotate(config_for(few, tmp_path / "out", "fake", server=url, server_concurrency=4))
    assert summary.faults.corrupt_images == 3
    asked = summary.questions
    malformed = len(range(0, asked, 5))
    assert summary.flagged["not JSON"] == malformed
    assert summary.flagged["prompt too long"] == 1
    assert summary.valid == asked - malformed - 1
    assert summary.faults.asked_again == 2 * (malformed + 1) + len(range(1, asked, 5))
    out = tmp_path / "out"
    assert {path.stem: pq.read_table(path).num_rows for path in store.list_annotations(out)} == before
    for path in store.list_episodes(few):
        episode = store.read_episode(path, images=False)
        ruled = rules.by_rules(episode, rules.nine_phases(episode), 9)
        written = store.read_annotation(store.annotation_path(out, path.stem))
        kept = [t for t, flag in enumerate(written.flags) if flag and written.sources[t] == "rules"]
        assert all(written.descriptions[t] == ruled.descriptions[t] for t in kept)


def every_known_form(index, tries, question):
    answer = good(question)
    forms = (
        [{"type": "text", "text": answer}],
        f"```json\n{answer}\n```",
        f"<think>hm {{}}</think>{answer}",
        {"content": None, "reasoning_content": answer},
        f"Here it is: {answer} Anything else?",
    )
    return 200, forms[index % len(forms)]


def test_what_servers_are_known_to_send_is_understood(data, tmp_path):
    """Content as a list of parts lost the whole job; JSON in a code fence was "not JSON", for all answers."""
    few = some(data, tmp_path / "data", 3)
    with Misbehaving(every_known_form) as url:
        summary = annotate(config_for(few, tmp_path / "out", "fake", server=url))
    assert summary.valid == summary.vlm_calls == summary.questions > 5
    assert summary.first_words == {}


def every_form_of_no_answer(index, tries, question):
    forms = (
        good(question),
        {"content": None, "refusal": "I can't\n[/help] with that"},
        b'{"choices": []}',
        b'{"error": {"message": "out of memory", "code": 500}}',
        b"<html>Bad gateway</html>",
        {"content": f"\ud83d {good(question)[:9]}"},
        b"null",
    )
    return 200, forms[index % len(forms)]


def test_what_holds_no_answer_costs_its_own_frames_only_and_its_first_words_are_shown(data, tmp_path, capsys):
    few = some(data, tmp_path / "data", 3)
    with Misbehaving(every_form_of_no_answer) as url:
        summary = annotate(config_for(few, tmp_path / "out", "fake", server=url, max_retries=0))
    asked = summary.questions
    assert asked > 7
    assert summary.valid == len(range(0, asked, 7))
    assert summary.flagged["refused"] == len(range(1, asked, 7))
    assert summary.flagged["not JSON"] == len(range(5, asked, 7))
    assert summary.flagged["server error"] == asked - sum(len(range(first, asked, 7)) for first in (0, 1, 5))
    assert summary.first_words["refused"] == "I can't [/help] with that"
    assert summary.faults.engine_failures == 0
    assert "not usable (refused): I can't [/help] with that" in capsys.readouterr().out


def corrupt_first_picture(path):
    """As a bad disk would: the file stays a valid Parquet file, one picture in it is half there."""
    table = pq.read_table(path)
    pictures = table["agentview"].to_pylist()
    pictures[0] = pictures[0][: len(pictures[0]) // 2]
    column = table.schema.get_field_index("agentview")
    field = table.schema.field("agentview")
    pq.write_table(table.set_column(column, field, [pictures]), path)


def test_when_nothing_is_usable_the_job_fails_and_rule_labels_stay(data, tmp_path):
    few = some(data, tmp_path / "data", 2)
    command = [sys.executable, "jobs/annotate.py", "--data", str(few), "--out", str(tmp_path / "out")]
    command += ["--annotator", "vlm", "--model", "fake", "--max-retries", "0", "--server"]
    with Misbehaving(lambda *_: (200, "no, it is a secret")) as url:
        done = subprocess.run([*command, url], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 2
    assert "error: not one of" in done.stderr and "keep their rule labels" in done.stderr
    assert "not JSON: 'no, it is a secret'" in done.stderr and "--max-tokens" not in done.stderr
    for path in store.list_episodes(few):
        episode = store.read_episode(path, images=False)
        ruled = rules.by_rules(episode, rules.nine_phases(episode), 9)
        assert store.read_annotation(store.annotation_path(tmp_path / "out", path.stem)).descriptions == (
            ruled.descriptions
        )


@pytest.mark.parametrize("server", ["http://127.0.0.1:9/v1", "127.0.0.1:9/v1", "nonsense"])
def test_a_server_that_is_not_there_is_told_before_any_work(data, tmp_path, server):
    with pytest.raises(UserError, match="does not answer like an OpenAI-compatible server"):
        annotate(config_for(data, tmp_path, "any", server=server))


@pytest.mark.parametrize("models", [b"null", b'{"data": null}', b'{"models": []}', b"[]", b"<html>\n</html>", b""])
def test_a_server_without_a_list_of_models_is_told_with_what_it_says(models):
    """Some of these ended in a traceback."""
    with Misbehaving(None, models) as url, pytest.raises(UserError, match="with a list of models; it says: ") as error:
        chat_server.check(VlmConfig(server=url), "any")
    assert "\n" not in str(error.value)


def test_the_audit_finds_the_lies_of_a_server(data, tmp_path):
    few = some(data, tmp_path / "data", 10)
    summary = bench_audit.bench_audit(BenchAuditConfig(data=few, out=tmp_path, rates=(30,)))
    every = summary["rates"]["30"]["all"]
    assert every["windows"] > 50 and every["lies"] > 10
    assert every["detection"] >= 0.95
    assert every["false_alarm_rate"] <= 0.02
    assert abs(every["estimated_rate"] - every["true_rate"]) <= 0.03
