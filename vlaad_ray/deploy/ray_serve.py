"""Serve a student from replicas on a cluster, through Ray Serve: the protocol, token and limits of deploy/server.py.

A connection belongs to one replica for as long as it lasts, and with it its client's state; a replica batches the
requests of its own connections. When a replica goes, its connections break: clients connect again, to another one.

Why not `@serve.batch`: it forms batches also while the student computes, of whatever came within a set time, and
these then queue behind each other. Batcher collects meanwhile, and learns how long waiting pays (docs/experiments.md).
"""

from __future__ import annotations

import shlex
import signal
import threading
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from http import HTTPStatus

import tyro
from ray import serve
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from vlaad_ray.configs import ServeClusterConfig, UserError, check_bounds
from vlaad_ray.deploy import access, metrics
from vlaad_ray.deploy.loading import describe
from vlaad_ray.deploy.metrics import Counts
from vlaad_ray.deploy.server import HEALTH, METRICS, served_student, student_metadata
from vlaad_ray.deploy.session import Session
from vlaad_ray.deploy.shaping import shape
from vlaad_ray.runtime import cluster
from vlaad_ray.runtime.nodes import fitted
from vlaad_ray.runtime.placement import Processes, divide
from vlaad_ray.serving import protocol
from vlaad_ray.serving.batcher import Batcher
from vlaad_ray.serving.rhythm import Rhythm

NAME = "vlaad_ray"
SPARE_REQUESTS = 8
"""What a replica takes beside its connections: health checks, and clients to be told that it is full."""


@serve.ingress()
class StudentReplica:
    """One copy of the student and the connections that fell to it."""

    def __init__(self, config: ServeClusterConfig):
        student, device = config.student, "cuda" if config.gpus_per_replica > 0 else "cpu"
        self._policy, self._execute = served_student(student, device), student.execute or None
        self._metadata = protocol.pack(student_metadata(student, config.server, self._policy))
        self._config, self._token = config.server, access.read_token(config.server)
        self._batcher: Batcher | None = None
        self._connections, self._counts = 0, Counts()

    def __serve_build_asgi_app__(self) -> Starlette:
        routes = [WebSocketRoute("/", self._enter), Route(HEALTH, _health), Route(METRICS, self._metrics)]
        return Starlette(routes=routes)

    async def _metrics(self, request: Request) -> Response:
        """What this replica has done: the next request may come to another one, hence the label."""
        if not access.may_enter(request.headers.getlist("authorization"), self._token):
            return PlainTextResponse(access.REFUSED, HTTPStatus.UNAUTHORIZED, access.CHALLENGE)
        batches, waiting = (self._batcher.batches, self._batcher.waiting) if self._batcher is not None else (0, 0)
        name = serve.get_replica_context().replica_id.unique_id
        text = metrics.exposition(self._counts, batches, waiting, self._connections, name)
        return Response(text, media_type=metrics.CONTENT_TYPE)

    async def _enter(self, connection: WebSocket) -> None:
        """Let a client in, or answer with an HTTP status instead of the handshake."""
        refusal = self._refusal(connection)
        if refusal is not None:
            await connection.send_denial_response(refusal)
            return
        self._connections += 1
        try:
            await self._converse(connection)
        finally:
            self._connections -= 1

    def _refusal(self, connection: WebSocket) -> Response | None:
        """As PolicyServer does it."""
        if not access.may_enter(connection.headers.getlist("authorization"), self._token):
            return PlainTextResponse(access.REFUSED, HTTPStatus.UNAUTHORIZED, access.CHALLENGE)
        if "origin" in connection.headers:
            return PlainTextResponse("no page in a browser may ask\n", HTTPStatus.FORBIDDEN)
        if self._connections >= self._config.max_connections:
            return PlainTextResponse(f"{self._connections} clients are connected\n", HTTPStatus.SERVICE_UNAVAILABLE)
        return None

    async def _converse(self, connection: WebSocket) -> None:
        if self._batcher is None:
            rhythm = Rhythm(self._config.max_batch, self._config.max_wait_ms / 1000)
            thread = ThreadPoolExecutor(1)
            self._batcher = Batcher(self._policy.infer_batch, self._config.max_batch, rhythm, thread)
        await connection.accept()
        shaping = shape(self._execute, self._config.ensemble, self._config.actuation)
        session = Session(connection.client, self._batcher, self._policy.cameras, shaping, self._counts)

        async def messages() -> AsyncIterator[str | bytes]:
            while (message := await connection.receive())["type"] == "websocket.receive":
                text = message.get("text")
                yield message["bytes"] if text is None else text

        async def send(reply: str | bytes) -> None:
            await (connection.send_text(reply) if isinstance(reply, str) else connection.send_bytes(reply))

        with closing(session), suppress(WebSocketDisconnect):  # the client has gone; others go on
            await session.converse(self._metadata, messages(), send)


def deployment(config: ServeClusterConfig) -> serve.Application:
    """The replicas as Ray Serve wants them. Raises UserError for what cannot be served."""
    check_bounds(config)
    shape(config.student.execute or None, config.server.ensemble, config.server.actuation)  # refuses what cannot be
    describe(config.student.checkpoint)
    access.read_token(config.server)
    return serve.deployment(
        num_replicas=config.replicas,
        ray_actor_options={"num_cpus": config.cpus_per_replica, "num_gpus": config.gpus_per_replica},
        max_ongoing_requests=config.server.max_connections + SPARE_REQUESTS,
        graceful_shutdown_timeout_s=1,  # connections never end by themselves
    )(StudentReplica).bind(config)


def application(args: Mapping[str, str]) -> serve.Application:
    """For `serve deploy` and KubeRay's RayService: `args` holds jobs/serve.py's flags, as {"flags": "--checkpoint …"}.

    Where proxies listen, Ray Serve then takes from the file's `http_options`, which --host and --port must repeat.
    """
    return deployment(tyro.cli(ServeClusterConfig, args=shlex.split(args["flags"])))


def start(config: ServeClusterConfig) -> str:
    """Serve on the cluster, or on this machine, and return the address for clients there. `stop` ends it."""
    replicas = deployment(config)
    if config.server.port == 0:
        raise UserError("--port 0: Ray Serve does not say which port it chose; name one")
    cluster.connect()
    wanted = Processes("replica", config.replicas, config.cpus_per_replica, config.gpus_per_replica)
    fitted(lambda nodes: divide(nodes, wanted), wanted, config.wait_for_nodes_s)
    serve.start(proxy_location="EveryNode", http_options={"host": config.server.host, "port": config.server.port})
    serve.run(replicas, name=NAME, route_prefix="/")
    return f"ws://{config.server.host}:{config.server.port}"


def stop() -> None:
    serve.shutdown()


def run(config: ServeClusterConfig) -> None:
    """Serve until SIGTERM or Ctrl-C."""
    url, ended = start(config), threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    print(f"serving {config.student.checkpoint} at {url}", flush=True)
    ended.wait()
    stop()


async def _health(_: Request) -> Response:
    return PlainTextResponse("OK\n")
