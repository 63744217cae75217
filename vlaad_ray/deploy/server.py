"""Serve a policy over openpi's websocket protocol, so that whatever speaks it drives a student of ours unchanged.

vlaad server --checkpoint RUN/checkpoint --port 8000
python -m vlaad_ray.deploy.server --checkpoint RUN/checkpoint --port 8000
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import socket
import sys
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import asdict
from http import HTTPStatus
from typing import Any

import tyro
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from vlaad_ray import __version__
from vlaad_ray.configs import ServeConfig, ServedStudentConfig, ServerConfig, UserError, check_bounds, users_errors
from vlaad_ray.deploy import access, metrics
from vlaad_ray.deploy.loading import describe
from vlaad_ray.deploy.metrics import Counts
from vlaad_ray.deploy.policy import StudentPolicy, check_execute
from vlaad_ray.deploy.session import ServablePolicy, Session
from vlaad_ray.deploy.shaping import shape
from vlaad_ray.serving import protocol
from vlaad_ray.serving.batcher import Batcher
from vlaad_ray.serving.rhythm import Rhythm

HEALTH, STATS, METRICS = "/healthz", "/stats", "/metrics"


class PolicyServer:
    """Answers any number of clients, those that ask together in one batch, from when the context begins to its end.

    `GET /healthz` says OK, to anybody; `GET /stats` what has been done, as JSON, and `GET /metrics` the same for
    Prometheus, to who has the token.
    """

    def __init__(
        self,
        policy: ServablePolicy,
        metadata: Mapping[str, Any],
        config: ServerConfig = ServerConfig(port=0),  # noqa: B008  it is frozen
        execute: int | None = None,
    ):
        """`metadata`: sent to each client that connects; {} or what tells policies apart. Raises UserError.

        `execute`: actions that a client gets of each answer; None: all.
        """
        check_bounds(config)
        shape(execute, config.ensemble, config.actuation)  # refuses what cannot be before anybody connects
        self._policy, self._metadata, self._config = policy, protocol.pack(metadata), config
        self._execute = execute
        self._token = access.read_token(config)
        family, address = access.resolve(config.host, config.port)
        try:
            self._socket = socket.create_server(address, family=family)
        except OSError as error:
            raise UserError(
                f"cannot listen on {config.host} port {config.port} ({error.strerror}); choose another --port"
            ) from None
        self.host, self.port = self._socket.getsockname()[:2]
        self.counts = Counts()
        self._thread = ThreadPoolExecutor(1)

    @property
    def url(self) -> str:
        return f"ws://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    def __enter__(self) -> PolicyServer:
        """Clients that connect from now on are served."""
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._running: Future[None] = self._thread.submit(self._loop.run_until_complete, self._run())
        return self

    def __exit__(self, *_: object) -> None:
        """Close all connections and stop."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.shutdown()
        self._loop.close()

    def wait(self) -> None:
        """Until a signal ends it. Raises what ended the server."""
        self._running.result()

    async def _run(self) -> None:
        with ThreadPoolExecutor(1) as thread:
            rhythm = Rhythm(self._config.max_batch, self._config.max_wait_ms / 1000)
            self._batcher = Batcher(self._policy.infer_batch, self._config.max_batch, rhythm, thread)
            listening = serve(
                self._converse,
                sock=self._socket,
                process_request=self._admit,
                # Browsers name the page that asks, other clients nothing: no page may use its visitor's server.
                origins=[None],
                compression=None,
                max_size=protocol.MAX_MESSAGE,
                max_queue=1,  # a client has one request in flight; what it sends beyond that waits at its end
                close_timeout=1,
            )
            async with listening:
                await self._stop.wait()
            await self._batcher.close()

    def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        """Before the handshake: None lets the client in."""
        if request.path == HEALTH:
            return connection.respond(HTTPStatus.OK, "OK\n")
        if not access.may_enter(request.headers.get_all("Authorization"), self._token):
            response = connection.respond(HTTPStatus.UNAUTHORIZED, access.REFUSED)
            response.headers.update(access.CHALLENGE)
            return response
        clients = len(connection.server.connections)
        counts, batches, waiting = self.counts, self._batcher.batches, self._batcher.waiting
        if request.path == STATS:
            stats = {
                **{"answered": counts.answered, "refused": counts.refused, "failed": counts.failed},
                **{"batches": batches, "waiting": waiting, "clients": clients},
            }
            return connection.respond(HTTPStatus.OK, json.dumps(stats) + "\n")
        if request.path == METRICS:
            response = connection.respond(HTTPStatus.OK, metrics.exposition(counts, batches, waiting, clients))
            del response.headers["Content-Type"]
            response.headers["Content-Type"] = metrics.CONTENT_TYPE
            return response
        if clients >= self._config.max_connections:
            return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, f"{clients} clients are connected\n")
        return None

    async def _converse(self, connection: ServerConnection) -> None:
        shaping = shape(self._execute, self._config.ensemble, self._config.actuation)
        session = Session(connection.remote_address, self._batcher, self._policy.cameras, shaping, self.counts)
        with closing(session), suppress(ConnectionClosed):  # the client has gone; others go on
            await session.converse(self._metadata, aiter(connection), connection.send)


def served_student(student: ServedStudentConfig, device: str) -> StudentPolicy:
    """It answers with whole chunks: each client's shaping hands out its part. Raises UserError."""
    policy = StudentPolicy.from_pretrained(student.checkpoint, device=device, dtype=student.dtype)
    check_execute(student.execute or None, policy.execute)
    return policy


def student_metadata(student: ServedStudentConfig, server: ServerConfig, policy: StudentPolicy) -> dict[str, Any]:
    """What a client is told: enough to tell served students apart, and what they expect."""
    return {
        "policy": describe(student.checkpoint).name,
        "render": policy.training.get("render"),
        "image_size": 0,
        "cameras": [protocol.image_key(camera) for camera in policy.cameras],
        "actions": student.execute or policy.execute,
        "ensemble": server.ensemble,
        **asdict(server.actuation),
    }


def run(config: ServeConfig) -> None:
    """Serve until SIGTERM or Ctrl-C."""
    check_bounds(config)
    logging.basicConfig(format="%(asctime)s %(message)s")
    student = config.student
    policy = served_student(student, config.device)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    metadata = student_metadata(student, config.server, policy)
    with PolicyServer(policy, metadata, config.server, student.execute or None) as server:
        print(f"serving {student.checkpoint} at {server.url}", flush=True)
        server.wait()


if __name__ == "__main__":
    if "--version" in sys.argv:
        print(f"vlaad-ray {__version__}")
        sys.exit(0)
    with users_errors():
        run(tyro.cli(ServeConfig))
