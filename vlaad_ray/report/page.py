"""The page around the content: style sheet, sections, tables, embedded media."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from vlaad_ray.configs import Location
from vlaad_ray.files import read_bytes

EMBED_BYTES = 1_500_000
"""A larger video is linked, not embedded."""

CSS = """
:root { color-scheme: light dark; --ink: #1c2126; --soft: #5a646e; --rule: #d8dde2; --paper: #ffffff; --card: #f5f7f9;
  --student: #0072b2; --teacher: #8a5a00; --good: #1a7f5a; --bad: #b3361b; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ec; --soft: #9aa5b0; --rule: #353d46; --paper: #14181c;
  --card: #1d2329; --student: #56b4e9; --teacher: #e6a840; --good: #58c79a; --bad: #f08a6c; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1.25rem 4rem; max-width: 68rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; } h2 { font-size: 1.15rem; margin: 0; }
h3 { font-size: 1rem; margin: 1rem 0 .25rem; }
section { margin-top: 2.25rem; border-top: 1px solid var(--rule); padding-top: 1rem; }
p { margin: .4rem 0; } .source, .soft, figcaption { color: var(--soft); font-size: .85rem; }
.headline { font-size: 1.1rem; } .student { color: var(--student); } .teacher { color: var(--teacher); }
.not-run { color: var(--soft); font-style: italic; } .warning { color: var(--bad); }
code { font-size: .9em; } pre { overflow-x: auto; font-size: .8rem; background: var(--card); padding: .75rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; margin: .6rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .7rem .2rem 0; text-align: left; vertical-align: middle; white-space: nowrap; }
th { font-weight: 600; border-bottom: 1px solid var(--rule); }
table.described td:last-child { white-space: normal; min-width: 14rem; }
table.matrix td, table.matrix th { padding: .15rem .45rem; text-align: right; font-size: .85rem; }
table.matrix td { padding: 1px; } table.matrix .cell { display: block; min-width: 2.6rem; padding: .1rem .35rem; }
table.matrix td:first-child { text-align: left; }
svg { display: block; width: 100%; height: auto; font: 12px system-ui, "DejaVu Sans", sans-serif; }
td svg { width: 170px; } svg text { fill: var(--ink); } svg text.tick { fill: var(--soft); font-size: 11px; }
svg .grid { stroke: var(--rule); stroke-width: 1; } svg .axis { stroke: var(--soft); stroke-width: 1; }
svg .curve { fill: none; stroke-width: 2; }
svg .success { stroke: var(--good); stroke-width: 2; stroke-dasharray: 2 3; }
svg .interval { stroke-width: 4; stroke-opacity: .45; stroke-linecap: round; }
svg .interval.student { stroke: var(--student); } svg .interval.teacher { stroke: var(--teacher); }
svg circle.student { fill: var(--student); } svg circle.teacher { fill: var(--teacher); }
svg text.onband { font-size: 11px; } svg text.onband.dark { fill: #111; } svg text.onband.light { fill: #fff; }
.legend span { margin-right: 1rem; font-size: .85rem; white-space: nowrap; }
.legend i { display: inline-block; width: .8em; height: .8em; margin-right: .35em; border-radius: 2px; }
.columns { display: grid; grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)); gap: 1rem 1.5rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(28rem, 1fr)); gap: 1rem 1.5rem; }
.bars { display: grid; grid-template-columns: max-content 1fr max-content; gap: .2rem .75rem; max-width: 42rem; }
.bars b { align-self: center; display: block; height: .85rem; border-radius: 2px; background: var(--student); }
.starts td { padding: 1px 3px 1px 0; } .starts i { display: inline-block; width: 13px; height: 13px; border-radius: 2px;
  margin-right: 2px; vertical-align: middle; border: 1px solid var(--soft); }
.starts .both { background: var(--rule); }
.starts .student-only { background: var(--student); }
.starts .teacher-only { background: var(--teacher); }
.starts .neither { background: none; }
figure { margin: 0; } video { width: 100%; background: #000; border-radius: 3px; display: block; }
"""


def document(title: str, sections: Iterable[str], css: str = "", script: str = "") -> str:
    """css: rules beside those of every page. script: JavaScript, run when the page is there."""
    code = f"<script>{script}</script>" if script else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{CSS}{css}</style></head>\n<body>\n"
        + "\n".join(sections)
        + f"\n{code}</body></html>\n"
    )


def section(title: str, source: str, body: str) -> str:
    """`source`: the files and the command that the section's numbers come from; `code` marks in backquotes."""
    pieces = escape(source).split("`")
    marked = "".join(f"<code>{piece}</code>" if i % 2 else piece for i, piece in enumerate(pieces))
    return f'<section><h2>{escape(title)}</h2><p class="source">{marked}</p>{body}</section>'


def not_run(command: str) -> str:
    return f'<p class="not-run">not run: <code>{escape(command)}</code> makes this part</p>'


def table(header: Sequence[str], rows: Iterable[Sequence[str]], css: str = "") -> str:
    """Cells are HTML: the caller escapes text. A header of empty cells is left out. Of css "described"
    the last column wraps.
    """
    head = f"<thead><tr>{''.join(f'<th>{cell}</th>' for cell in header)}</tr></thead>" if any(header) else ""
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="wide"><table class="{css}">{head}<tbody>{body}</tbody></table></div>'


def bars(values: Mapping[str, float], unit: str, colours: Mapping[str, str] | None = None) -> str:
    """Horizontal bars from zero, longest at full width, each with its number."""
    longest = max(values.values(), default=0.0) or 1.0
    parts = []
    for name, value in values.items():
        colour = f";background:{colours[name]}" if colours and name in colours else ""
        number = f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.1f}"
        parts.append(f'<span>{escape(name)}</span><b style="width:{100 * value / longest:.1f}%{colour}"></b>')
        parts.append(f"<span>{number} {escape(unit)}</span>")
    return f'<div class="bars">{"".join(parts)}</div>'


def video(path: Location, page: Location, caption: str, may_embed: bool) -> str:
    """A player; a small film lies in the page itself, others, in folders below it, are linked relative to it."""
    if may_embed:
        address = "data:video/mp4;base64," + base64.b64encode(read_bytes(path)).decode()
    else:
        address = str(path).removeprefix(f"{page.parent}/")
    return (
        f'<figure><video controls loop muted playsinline preload="metadata" src="{escape(address)}"></video>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )
