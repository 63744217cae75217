"""Answers from an OpenAI-compatible server that runs already, through Ray Data LLM's HTTP stage."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

import aiohttp

from vlaad_ray.annotate import engines, replies
from vlaad_ray.configs import UserError, VlmConfig

RETRIES, BACK_OFF_S = 3, 1.0
"""Of one request that a server refuses as overloaded or drops; waits double."""
BATCHES_AN_ACTOR = 4
"""Ray Data's default for asynchronous functions."""
TIMEOUT_S = 300


def processor(config: VlmConfig, engine: engines.Engine, temperature: float, max_tokens: int) -> Any:
    """Rows of engines.request_row -> rows of engines.answer_row, as a Ray Data LLM processor."""
    from ray.data.llm import HttpRequestProcessorConfig, build_processor

    key = os.environ.get("OPENAI_API_KEY", "")
    processor_config = HttpRequestProcessorConfig(
        url=f"{config.server.rstrip('/')}/chat/completions",
        headers={"Authorization": f"Bearer {key}"} if key else None,
        # The stage sends the requests of a batch one after another, and an actor works on BATCHES_AN_ACTOR batches at a
        # time: so batches of one, and as many actors as give the concurrency.
        batch_size=1,
        concurrency=(1, -(-config.server_concurrency // BATCHES_AN_ACTOR)),
        session_factory=_Session,
        max_retries=RETRIES,
        base_retry_wait_time_in_s=BACK_OFF_S,
        http_request_stage={"enabled": True, "num_cpus": 0.05},
    )

    def preprocess(row: dict[str, Any]) -> dict[str, Any]:
        messages, schema = engines.prompt(row, config)
        payload = {
            "model": engine.model,
            "messages": messages,
            "temperature": temperature,
            "max_tokens": max_tokens,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "answer", "schema": json.loads(schema), "strict": True},
            },
        }
        return {"request": row["request"], "payload": json.dumps(payload)}

    def postprocess(row: dict[str, Any]) -> dict[str, Any]:
        return engines.answer_row(row, replies.Reply(**row["http_response"]))

    return build_processor(
        processor_config,
        preprocess=preprocess,
        postprocess=postprocess,
        preprocess_map_kwargs={"num_cpus": 0.5},
        postprocess_map_kwargs={"num_cpus": 0.1},
    )


class _Response(aiohttp.ClientResponse):
    """Whatever a server sends, as the fields of a replies.Reply.

    As they come, replies would differ in shape, or not be JSON: the stage stops at the latter, Arrow at the former.
    """

    async def json(self, **_: Any) -> dict[str, Any]:
        return vars(replies.read(self.status, await self.read()))


class _Session:
    """The HTTP session of Ray's stage, for payloads that are JSON text already.

    As dicts they would pass through Arrow, which gives each the fields of all others; and the stage turns what it gets
    into JSON, hence the way back here.
    """

    async def __aenter__(self) -> _Session:
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        self._session = aiohttp.ClientSession(timeout=timeout, response_class=_Response)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    def post(self, url: str, headers: Mapping[str, str], data: str) -> Any:
        return self._session.post(url, headers=headers, data=json.loads(data))


def check(config: VlmConfig, model: str) -> None:
    """Ask the server once for its models, so that a wrong URL, key or model is told before any work. UserError."""
    url = f"{config.server.rstrip('/')}/models"
    key = os.environ.get("OPENAI_API_KEY", "")
    try:
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"} if key else {})
        with contextlib.closing(urllib.request.urlopen(request, timeout=30)) as response:
            sent = response.read().decode("utf-8-sig", "replace")
    except urllib.error.HTTPError as error:
        hint = "; set OPENAI_API_KEY" if error.code in (401, 403) else ""
        raise UserError(f"--server: {url} answers {error.code} {error.reason}{hint}") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise UserError(f"--server: {url} does not answer like an OpenAI-compatible server: {error!r}") from None
    listed = replies.decoded(sent).get("data")
    if not isinstance(listed, list) or not all(isinstance(entry, dict) and "id" in entry for entry in listed):
        said = replies.first_words(sent) or "nothing"
        raise UserError(
            f"--server: {url} does not answer like an OpenAI-compatible server, with a list of models; it says: {said}"
        )
    known = [str(entry["id"]) for entry in listed]
    if model not in known:
        raise UserError(f"--model: the server at {config.server} does not know {model!r}; it has {', '.join(known)}")
