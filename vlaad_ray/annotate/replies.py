"""What OpenAI-compatible servers are known to reply, brought to one form; and the JSON in what a model says.

Servers differ from OpenAI's in how an answer is put: text or a list of parts, in `content` or (vLLM with a reasoning
parser) in `reasoning_content`, errors with status 200. Models put words, thoughts and code fences around their JSON.
Nothing here raises, whatever came: what holds no answer has a `problem`, and its first words in `text`.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

FIRST_WORDS = 120
"""Characters shown of an answer that is of no use."""
PROMPT_TOO_LONG = ("maximum model length", "max_model_len", "context length", "context size", "context_length_exceeded")
"""As vLLM, OpenAI and llama.cpp say it."""
THOUGHT_BEGINS, THOUGHT_ENDS = "<think>", "</think>"
"""Around the reasoning of DeepSeek-R1, Qwen3 and their like, where a server leaves it in the answer."""


@dataclass(frozen=True)
class Reply:
    """One try at one question."""

    text: str
    """The answer; where there is none, what came instead, cut to some words."""
    problem: str = ""
    """Why there is no answer, in few words, for counting: "refused", "no text", "cut off", "prompt too long",
    "server error", "engine error"."""
    finish: str = ""
    """Why generation ended, as the server says it ("stop", "length"); empty: it doesn't say."""
    prompt_tokens: int = 0
    generated_tokens: int = 0


def read(status: int, body: bytes) -> Reply:
    """All that a server sent in reply to a chat completion, whatever it is."""
    sent = body.decode("utf-8-sig", "replace")
    reply = decoded(sent)
    choice = _first(reply.get("choices"))
    message = choice.get("message")
    if status >= 400 or not isinstance(message, dict) or choice.get("error"):
        return failure(sent or f"nothing, with HTTP status {status}", "server error")
    usage = reply.get("usage")
    tokens = {
        "prompt_tokens": _count(usage, "prompt_tokens"),
        "generated_tokens": _count(usage, "completion_tokens"),
    }
    finish = choice["finish_reason"] if isinstance(choice.get("finish_reason"), str) else ""
    text, refusal = _said(message)
    if not text and finish != "length" and not refusal:
        text = _json_thought(message)
    if finish == "length":
        return Reply(first_words(text or json.dumps(message)), "cut off", finish, **tokens)
    if finish == "content_filter" or (refusal and not text):
        return Reply(first_words(refusal or text or json.dumps(message)), "refused", finish, **tokens)
    if not text:
        return Reply(first_words(json.dumps(message)), "no text", finish, **tokens)
    return Reply(text, "", finish, **tokens)


def decoded(sent: str) -> dict[str, Any]:
    """The JSON object that a server sent; without entries, where it sent something else."""
    with suppress(ValueError, RecursionError):  # HTML of a proxy, an empty body, half a document
        if isinstance(reply := json.loads(sent), dict):
            return reply
    return {}


def failure(error: str, problem: str) -> Reply:
    """What an engine or server says instead of an answer; `problem`, unless it says that the prompt is too long."""
    too_long = any(sign in error for sign in PROMPT_TOO_LONG)
    return Reply(first_words(error), "prompt too long" if too_long else problem)


def json_object(text: str) -> str | None:
    """The JSON object in a model's answer, as it stands there; None: there is none.

    Passed over: a thought before it, words, code fences and special tokens around it. Of several objects the last
    counts, since a model that thinks aloud ends with its answer.
    """
    _, ended, answer = text.rpartition(THOUGHT_ENDS)
    if not ended and THOUGHT_BEGINS in text:
        return None  # it never came to an end
    decoder, found, at = json.JSONDecoder(), None, answer.find("{")
    while at >= 0:
        try:
            _, end = decoder.raw_decode(answer, at)
            found = answer[at:end]
        except ValueError:
            end = at + 1
        except RecursionError:
            return None  # no answer is nested so deeply, and trying each level would take for ever
        at = answer.find("{", end)
    return found


def first_words(text: str) -> str:
    """On one line, FIRST_WORDS characters at most."""
    line = " ".join(text.split())
    return line if len(line) <= FIRST_WORDS else f"{line[: FIRST_WORDS - 1]}…"


def _said(message: dict[str, Any]) -> tuple[str, str]:
    """Text and refusal of a message whose content is text, null, or a list of parts (text, thoughts, refusals)."""
    content, refusals = message.get("content"), [message.get("refusal")]
    parts = content if isinstance(content, list) else [content]
    texts: list[Any] = []
    for part in parts:
        if isinstance(part, dict):
            refusals.append(part.get("refusal"))
            texts.append(part.get("text"))  # a thought has none
        else:
            texts.append(part)
    return "".join(map(_clean, texts)).strip(), " ".join(filter(None, map(_clean, refusals)))


def _json_thought(message: dict[str, Any]) -> str:
    """The answer that a reasoning parser took for a thought: vLLM's does where the model answers without thinking.

    Only if all of it is JSON. What is drafted within a thought is no answer.
    """
    thought = (_clean(message.get("reasoning_content")) or _clean(message.get("reasoning"))).strip()
    return thought if thought and thought == json_object(thought) else ""


def _clean(value: object) -> str:
    """Text that can be stored as UTF-8: JSON may hold half of a surrogate pair."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else ""


def _first(choices: object) -> dict[str, Any]:
    return choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}


def _count(usage: object, name: str) -> int:
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if isinstance(value, int) and 0 <= value < 2**31 else 0
