"""An OpenAI-compatible server that knows what the robot did, and lies about a known share of it.

It recognises a question by its messages, so it answers what a perfect VLM would, except where it lies: then the ledger
says how. The audit is measured against that ledger.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

import numpy as np

from vlaad_ray.annotate import prompts
from vlaad_ray.annotate.prompts import FINGERS, STILL, TURNS, Frame
from vlaad_ray.annotate.windows import Window
from vlaad_ray.semantics import directions
from vlaad_ray.semantics.directions import AXES, Displacement, Subtask

MODEL = "liar"
Lie = Literal["opposite", "wrong axis", "wrong element", "wrong phase"]
CLEARLY_SIDEWAYS = 0.1
"""An axis along which the hand moved less than this share of its main one is a wrong one to name."""
OTHER_THINGS = ("the red mug", "the toaster", "the blue book", "the lamp")
"""In no LIBERO scene of the four suites."""


@dataclass(frozen=True)
class Truth:
    """What there is to know of one question."""

    window: Window
    moved: Displacement
    """In the base frame."""
    subtask: Subtask


@dataclass
class Liar:
    """Answers by question, with a ledger of its lies. rate: share of answers that contradict the truth, in [0, 1]."""

    truths: Mapping[str, Truth]
    """By digest(messages)."""
    rate: float
    frame: Frame
    seed: int = 0
    ledger: dict[str, Lie | None] = field(default_factory=dict)

    def answer(self, messages: list[dict[str, Any]]) -> str:
        question = digest(messages)
        truth = self.truths[question]
        random = np.random.default_rng([self.seed, int(question[:15], 16)])
        lie = self._choose(truth, random) if random.random() < self.rate else None
        self.ledger[question] = lie
        return json.dumps(tell(truth, lie, self.frame, random))

    def _choose(self, truth: Truth, random: np.random.Generator) -> Lie:
        if truth.window.kind == "describe":
            return "wrong phase"
        kinds: list[Lie] = ["opposite", "wrong element"]
        if _sideways(truth.moved).any() and directions.words(truth.moved).startswith("moving"):
            kinds.append("wrong axis")
        return kinds[random.integers(len(kinds))]


def tell(truth: Truth, lie: Lie | None, frame: Frame, random: np.random.Generator) -> dict[str, str]:
    """The JSON of an answer, true or with one lie in it."""
    if truth.window.kind == "describe":
        verbs = prompts.verbs(truth.window.phase)
        if lie:
            verbs = tuple(verb for verb in prompts.vocabulary() if verb not in verbs)
        return {"description": f"{verbs[random.integers(len(verbs))]} {truth.subtask.thing}"}
    direction = true_direction(truth.moved, random)
    if lie == "opposite":
        direction = opposite(direction, random)
    elif lie == "wrong axis":
        axis = int(random.choice(np.flatnonzero(_sideways(truth.moved))))
        direction = f"moving {AXES[axis][random.integers(2)]}"
    element = random.choice([truth.subtask.thing, truth.subtask.thing.split()[-1]])
    if lie == "wrong element":
        element = OTHER_THINGS[random.integers(len(OTHER_THINGS))]
    return {"element": str(element), "direction": prompts.from_base(direction, frame)}


def true_direction(moved: Displacement, random: np.random.Generator) -> str:
    """One of the true ways to say it: of two axes that are about as large, people name either or both."""
    words = directions.words(moved)
    first, conjunction, second = words.removeprefix("moving ").partition(" and ")
    if not words.startswith("moving") or not conjunction:
        return words
    return str(random.choice([words, f"moving {first}", f"moving {second}", f"moving {second} and {first}"]))


def opposite(direction: str, random: np.random.Generator) -> str:
    """The same axes the other way; for a hand that rests, any motion."""
    for pair in (TURNS, FINGERS):
        if direction in pair:
            return pair[1 - pair.index(direction)]
    if direction == STILL:
        return f"moving {AXES[random.integers(3)][random.integers(2)]}"
    swap = {a: b for pair in AXES for a, b in (pair, pair[::-1])}
    return " ".join(swap.get(word, word) for word in direction.split())


def digest(messages: list[dict[str, Any]]) -> str:
    return hashlib.sha256(json.dumps(messages, sort_keys=True).encode()).hexdigest()


@contextlib.contextmanager
def serve(liar: Liar) -> Iterator[str]:
    """Run the server on a free loopback port; yields its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._reply({"data": [{"id": MODEL}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            text = liar.answer(body["messages"])
            usage = {"prompt_tokens": 0, "completion_tokens": len(text.split())}
            self._reply({"choices": [{"message": {"content": text}}], "usage": usage})

        def _reply(self, content: dict[str, Any]) -> None:
            data = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """The job shows its own progress."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server, contextlib.ExitStack() as after:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        after.callback(thread.join)
        after.callback(server.shutdown)  # before that
        yield f"http://127.0.0.1:{server.server_port}/v1"


def _sideways(moved: Displacement) -> np.ndarray:
    xyz = np.abs(np.array(moved.xyz))
    return xyz < CLEARLY_SIDEWAYS * xyz.max()
