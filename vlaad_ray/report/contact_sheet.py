"""A VLM's answers before a person's eyes: pictures, prompt, answer and motion, each to be accepted or rejected.

One self-contained HTML file. Decisions stay in the browser until they are exported as JSON, {request: "accepted" |
"rejected"}, which jobs/annotate.py --decisions reads.
"""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from typing import Any

import numpy as np

from vlaad_ray import store
from vlaad_ray.configs import Location, UserError
from vlaad_ray.report import answers, charts, page
from vlaad_ray.report.charts import Frame
from vlaad_ray.semantics import directions
from vlaad_ray.semantics.directions import AXES, MIN_FINGER_M, MIN_MOVE_M, MIN_TURN_RAD
from vlaad_ray.types import CONTROL_HZ

PANEL = 150.0
"""Size of a drawing of the motion, without its captions."""
DECISIONS = {"accept": "accepted", "reject": "rejected"}
CSS = """
.bar { position: sticky; top: 0; z-index: 1; display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; align-items: center;
  margin-top: 1rem; padding: .5rem 0; background: var(--paper); border-bottom: 1px solid var(--rule); }
button { font: inherit; color: inherit; background: var(--paper); border: 1px solid var(--soft); border-radius: 4px;
  padding: .15rem .8rem; cursor: pointer; } kbd { border: 1px solid var(--rule); border-radius: 3px; padding: 0 .3em; }
article { margin: 1rem 0; padding: .75rem 1rem; background: var(--card); border-left: 5px solid var(--rule);
  border-radius: 4px; scroll-margin-top: 5.5rem; overflow-wrap: anywhere; } article h3 { margin: 0; }
article:focus { outline: 2px solid var(--student); }
article[data-decision=accepted] { border-left-color: var(--good); }
article[data-decision=rejected] { border-left-color: var(--bad); }
button[aria-pressed=true][value=accepted] { background: var(--good); color: var(--paper); }
button[aria-pressed=true][value=rejected] { background: var(--bad); color: var(--paper); }
.film { display: flex; flex-wrap: wrap; gap: .4rem; margin: .5rem 0; }
.film img { display: block; width: 172px; border-radius: 2px; }
.told { display: grid; grid-template-columns: minmax(0, 1fr) 330px; gap: .5rem 1.5rem; align-items: start; }
@media (max-width: 46rem) { .told { grid-template-columns: minmax(0, 1fr); } .keys { display: none; } }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .15rem .8rem; margin: 0; }
dt { color: var(--soft); } dd { margin: 0; } article pre { white-space: pre-wrap; background: var(--paper); }
.agree { color: var(--good); } .contradict { color: var(--bad); } .undecidable { color: var(--soft); }
svg .did { stroke: var(--student); fill: var(--student); stroke-width: 3; }
svg .said { stroke: var(--bad); fill: var(--bad); stroke-width: 2; } svg line.said { stroke-dasharray: 4 3; }
"""


def write_contact_sheet(annotations: Location, data: Location, count: int, seed: int = 0) -> Location:
    """Write annotations/contact_sheet.html, of `count` contradictions and `count` answers drawn at random.

    Raises UserError when the annotations are not a VLM's, or not of this dataset.
    """
    found = answers.read(annotations)
    audited = store.read_audit(annotations)
    contradictions = worst_first(audited)
    worst, drawn = contradictions[:count], draw(audited, count, seed)
    sampled, above = ({row["request"] for row in rows} for rows in (drawn, worst))
    others = [row for row in drawn if row["request"] not in above]
    cards = [_card(shown, shown.row["request"] in sampled) for shown in gather(annotations, data, [*worst, *others])]
    content = page.document(
        f"Contact sheet: {found.model}",
        [
            f"<header><h1>Contact sheet: answers of {escape(found.model)}</h1></header>",
            page.section(
                "The audit in numbers",
                f"`summary.json`, written by `jobs/annotate.py`. {answers.SOURCE}",
                answers.figures(found),
            ),
            _bar({row["request"]: row["decision"] for row in audited if row["decision"]}),
            page.section(
                "Worst contradictions",
                f"{len(worst)} of {len(contradictions)} in `audit.parquet`. Directions come first: those where the "
                "hand ended farthest from where the answer would have it.",
                _legend() + "".join(cards[: len(worst)]),
            ),
            page.section(
                "Random sample",
                f"{len(drawn)} of all {len(audited)} answers in `audit.parquet`, whatever the audit says of them (seed "
                f"{seed}); {len(drawn) - len(others)} of them stand above, among the contradictions.",
                _legend() + "".join(cards[len(worst) :]),
            ),
        ],
        CSS,
        resources.files(__package__).joinpath("contact_sheet.js").read_text(),
    )
    path = annotations / "contact_sheet.html"
    with store.replacing(path) as temporary:
        temporary.write_text(content, encoding="utf-8")
    return path


# ------------------------------------------------------------------------------------------------------------- choice


def worst_first(audited: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The contradictions: directions by evidence, then elements, then phases; the longer window first."""
    order = ("direction", "element", "phase")

    def rank(row: Mapping[str, Any]) -> tuple[Any, ...]:
        contradicted = [part for part, verdict in row["parts"].items() if verdict == "contradict"]
        wrong = min(order.index(part) if part in order else len(order) for part in contradicted)
        against = evidence(row) if "direction" in contradicted else 0.0
        return wrong, -against, row["first"] - row["last"], row["request"]

    return sorted((row for row in audited if row["verdict"] == "contradict"), key=rank)


def evidence(row: Mapping[str, Any]) -> float:
    """How far the motion speaks against a direction, in multiples of the smallest motion that counts as one."""
    xyz, (yaw, width) = np.array(row["moved"][:3]), row["moved"][3:]
    claimed = claim(row)
    if claimed.any():
        return float(np.linalg.norm(xyz - claimed)) / MIN_MOVE_M
    return max(float(np.linalg.norm(xyz)) / MIN_MOVE_M, abs(yaw) / MIN_TURN_RAD, abs(width) / MIN_FINGER_M)


def claim(row: Mapping[str, Any]) -> np.ndarray:
    """Where the hand would have gone, had it gone as far as it did in the direction that was said: [3] m, base frame.

    Zero where no direction in space was said.
    """
    signs = directions.axis_signs(row["direction"] or "").astype(float)
    return signs / max(1.0, float(np.linalg.norm(signs))) * float(np.linalg.norm(row["moved"][:3]))


def draw(audited: Sequence[Mapping[str, Any]], count: int, seed: int) -> list[Mapping[str, Any]]:
    """At most `count` of all answers, whatever the audit says of them; the same ones for the same seed."""
    ordered = sorted(audited, key=lambda row: row["request"])
    return random.Random(seed).sample(ordered, min(count, len(ordered)))


# -------------------------------------------------------------------------------------------------------------- cards


@dataclass(frozen=True)
class Shown:
    """An audited answer with what a card shows beside the audit."""

    row: Mapping[str, Any]
    """Of store.AUDIT_SCHEMA."""
    answer: Mapping[str, Any]
    """Of store.ANSWER_SCHEMA."""
    pictures: Sequence[bytes]
    """As stored, in the order in which the VLM saw them."""


def gather(annotations: Location, data: Location, rows: Sequence[Mapping[str, Any]]) -> list[Shown]:
    """In the order of `rows`. Reads each episode once. Raises UserError when files do not fit together."""
    paths = {path.stem: path for path in store.list_episodes(data)}
    shown: dict[str, Shown] = {}
    for episode in sorted({row["episode"] for row in rows}):
        if episode not in paths:
            raise UserError(f"{data} has no episode {episode}, of which {annotations} speaks; check --data")
        pictures = store.read_pictures(paths[episode])
        answers = {answer["request"]: answer for answer in store.read_answers(annotations, episode)}
        for row in (row for row in rows if row["episode"] == episode):
            if row["request"] not in answers or not pictures.keys() >= set(row["frames"]):
                raise UserError(f"{annotations} does not fit {paths[episode]}; rerun jobs/annotate.py on it")
            shown[row["request"]] = Shown(row, answers[row["request"]], [pictures[step] for step in row["frames"]])
    return [shown[row["request"]] for row in rows]


def _card(shown: Shown, sampled: bool) -> str:
    row, answer = shown.row, shown.answer
    said = row["description"] or f"{row['element']}: {row['direction_seen']}, as seen in the pictures"
    frames = row["last"] - row["first"]
    where = [
        f"{row['suite']}, task {row['task']}",
        row["episode"],
        f"frames {row['first']}-{row['last'] - 1} ({frames / CONTROL_HZ:.1f} s)",
        f"phase by the rules: {row['phase']}",
        *(["in the random sample"] if sampled else []),
    ]
    pictures = "".join(map(_picture, shown.pictures, row["frames"]))
    verdicts = ", ".join(f'{part}: <b class="{verdict}">{verdict}</b>' for part, verdict in row["parts"].items())
    buttons = "".join(f'<button value="{value}">{name}</button> ' for name, value in DECISIONS.items())
    again = f' <span class="soft">(try {answer["attempts"]})</span>' if answer["attempts"] > 1 else ""
    frame = '<span class="soft">(directions in the robot\'s base frame)</span>' if row["direction"] else ""
    facts = {
        "answer": f"<code>{escape(answer['text'])}</code>{again}",
        "audit": verdicts + (f"<br>{escape(row['reason'])} {frame}" if row["reason"] else ""),
        **_motion(row),
    }
    listed = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in facts.items())
    return (
        f'<article tabindex="-1" data-request="{escape(row["request"])}" data-sampled="{int(sampled)}">'
        f'<h3>{escape(said)}</h3><p>{escape(row["instruction"])}</p><p class="soft">{escape("; ".join(where))}</p>'
        f'<div class="film">{pictures}</div>'
        f'<div class="told"><dl>{listed}</dl>{drawing(row)}</div>'
        f"<details><summary>prompt</summary><pre>{escape(row['prompt'])}</pre></details><p>{buttons}</p></article>"
    )


def _picture(data: bytes, step: int) -> str:
    address = f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"
    return f'<figure><img src="{address}" alt="step {step}"><figcaption>step {step}</figcaption></figure>'


def _motion(row: Mapping[str, Any]) -> dict[str, str]:
    """The kinematics in numbers and words."""
    xyz, (yaw, width) = row["moved"][:3], row["moved"][3:]
    along = ", ".join(
        f"{100 * abs(value):.1f} cm {names[int(value < 0)]}" for value, names in zip(xyz, AXES, strict=True)
    )
    claimed = f"; the answer: {row['direction']}" if row["direction"] else ""
    base = escape(f" ({row['truth']} in the robot's base frame{claimed})")
    turned = "counter-clockwise" if yaw >= 0 else "clockwise"
    fingers = "wider" if width >= 0 else "narrower"
    return {
        "hand": f"{100 * float(np.linalg.norm(xyz)):.1f} cm: {along} (robot's base frame)",
        "in words": f"{escape(row['truth_seen'])}, as seen in the pictures{base}",
        "turn": f"{abs(np.degrees(yaw)):.0f}° {turned}, from above; fingers {1000 * abs(width):.0f} mm {fingers}",
    }


def drawing(row: Mapping[str, Any]) -> str:
    """The motion from above and from the front, as the camera has it: what the hand did, and what was said."""
    did, said = np.array(row["moved"][:3]), claim(row)
    span = max(0.05, 1.15 * float(np.linalg.norm(did)))
    views = (  # axis and sign of what goes up in the drawing; +y goes to the right, as in the pictures
        ("from above; farther ↑", 0, -1),
        ("from the front; up ↑", 2, 1),
    )
    parts = []
    for number, (title, axis, sign) in enumerate(views):
        left, top = number * (PANEL + 22), 18.0
        frame = Frame(left, left + PANEL, top, top + PANEL, (-span, span), (-span, span))
        ticks = [tick for tick in charts.covering_ticks(-span, span) if abs(tick) < span]
        for tick in ticks:
            css = "grid" if tick else "axis"
            parts.append(charts.line(frame.x(tick), frame.top, frame.x(tick), frame.bottom, css))
            parts.append(charts.line(frame.left, frame.y(tick), frame.right, frame.y(tick), css))
        parts.append(charts.text(left, top - 6, title, css="tick"))
        grid = f"grid: {100 * (ticks[1] - ticks[0]):g} cm"
        parts.append(charts.text(frame.right, frame.bottom + 14, grid, "end", "tick"))
        arrows = {"said": said, "did": did} if said.any() else {"did": did}
        for css, moved in arrows.items():
            x, y = frame.x(moved[1]), frame.y(sign * moved[axis])
            parts.append(charts.arrow(frame.x(0), frame.y(0), x, y, css))
    return charts.svg(2 * PANEL + 22, PANEL + 36, parts, f"The hand: {row['truth_seen']}")


def _legend() -> str:
    return charts.legend({"what the hand did": "var(--student)", "where the answer would have it": "var(--bad)"})


def _bar(decisions: Mapping[str, str]) -> str:
    """Counts, export and keys; what was decided in earlier rounds is kept here, so that every export is whole."""
    stored = json.dumps(decisions).replace("<", "\\u003c")
    return (
        '<nav class="bar"><span id="counts"></span><button id="export">export decisions</button>'
        '<span class="keys"><kbd>j</kbd> next, <kbd>k</kbd> previous, <kbd>a</kbd> accept, <kbd>r</kbd> reject; '
        "again: undo</span>"
        '<span id="unkept" class="warning" hidden>This browser forgets decisions with this page: export them first.'
        f'</span></nav><script type="application/json" id="decisions">{stored}</script>'
    )
