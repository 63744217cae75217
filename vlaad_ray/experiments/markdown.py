"""Pages of results: tables and paragraphs in Markdown."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

COLUMNS = 120
"""Longest line of a page. A table that would be wider is to be two."""


def wrapped(text: str) -> str:
    """Paragraphs and lists in lines of at most COLUMNS; headings, tables and pictures as they are."""

    def fill(block: str) -> str:
        if block.startswith(("#", "|", "!")):
            return block
        paragraphs, indent = (block.splitlines(), "  ") if block.startswith("- ") else ([block], "")
        wrap = textwrap.TextWrapper(COLUMNS, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
        return "\n".join(map(wrap.fill, paragraphs))

    return "\n\n".join(fill(block) for block in text.split("\n\n"))


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
