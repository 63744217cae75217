"""Serve a policy over openpi's websocket protocol, so that whatever speaks it drives a student of ours unchanged.

python -m vlaad_ray.deploy.server --checkpoint RUN/checkpoint --port 8000
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import tyro
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection, serve

from vlaad_ray import wire
from vlaad_ray.types import ActionChunk, Observation

log = logging.getLogger(__name__)


class PolicyServer:
    """Answers any number of connections, one request at a time, until the context ends.

    `infer` must answer from the observation alone: connections share it. A request that it can't answer (ValueError)
    and a message that is none get an error as text and close their connection; the server goes on.
    """

    def __init__(
        self,
        infer: Callable[[Observation], ActionChunk],
        metadata: Mapping[str, Any],
        host: str = "127.0.0.1",
        port: int = 0,
    ):
        """`metadata`: sent to each client that connects; {} or what tells policies apart. Port 0: any free one."""
        self._infer, self._metadata = infer, wire.pack(metadata)
        self._one_at_a_time = threading.Lock()
        self._server = serve(
            self._handle, host, port, compression=None, max_size=wire.MAX_MESSAGE, ping_interval=None, close_timeout=1
        )
        self.host, self.port = self._server.socket.getsockname()[:2]
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        return f"ws://{self.host}:{self.port}"

    def __enter__(self) -> PolicyServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Close all connections and stop."""
        self._server.shutdown()
        self._thread.join()

    def wait(self) -> None:
        """Until another thread, or a signal, ends it."""
        self._thread.join()

    def _handle(self, connection: ServerConnection) -> None:
        try:
            connection.send(self._metadata)
            for message in connection:
                try:
                    connection.send(self._answer(message))
                except ValueError as error:
                    log.warning("refused a request of %s: %s", connection.remote_address, error)
                    connection.send(str(error))
                    connection.close(1008, "bad request")
        except ConnectionClosed:
            pass  # the client has gone; others go on

    def _answer(self, message: str | bytes) -> bytes:
        if isinstance(message, str):
            raise wire.MessageError("expected a binary message")
        observation = wire.unpack_observation(wire.unpack(message))
        start = time.monotonic()
        with self._one_at_a_time:
            chunk = self._infer(observation)
        return wire.pack(
            {wire.ACTIONS: chunk.actions, "server_timing": {"infer_ms": 1000 * (time.monotonic() - start)}}
        )


if __name__ == "__main__":
    from vlaad_ray.configs import ServeConfig
    from vlaad_ray.deploy.policy import StudentPolicy
    from vlaad_ray.students.checkpoint import checkpoint_name

    config = tyro.cli(ServeConfig)
    policy = StudentPolicy.from_pretrained(config.checkpoint, device=config.device, dtype=config.dtype)
    metadata = {"policy": checkpoint_name(config.checkpoint), "render": policy.training.get("render"), "image_size": 0}
    with PolicyServer(policy.infer, metadata, config.host, config.port) as server:
        print(f"serving {config.checkpoint} at {server.url}", flush=True)
        server.wait()
