"""Joining a Ray cluster, or starting one on this machine."""

from __future__ import annotations

import logging
import os
import random
import socket
from typing import Any

import ray

DASHBOARD_PORTS = range(8265, 9265)
"""From Ray's own choice on; one of them by chance, since jobs that start together would find the same one free."""


def connect(**options: Any) -> None:
    """Join the cluster that a submitted job runs in (RAY_ADDRESS), else start Ray here. A second call does nothing.

    `options` are ray.init's, for a Ray that is started here.
    """
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Says at every start that a local Ray guards itself with a token, which is as it should be.
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    shown: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": True}
    if (address := os.environ.get("RAY_ADDRESS", "local")) != "local":
        ray.init(address=address, **shown)
        return
    # Ray Train asks for the state of its actors at the Ray that was last started with `ray start` on this machine,
    # running or not, and takes what that does not know for dead: tell our own Ray's processes where its dashboard is.
    port = _free_port()
    os.environ["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{port}"
    try:
        ray.init(address=address, dashboard_port=port, **{**shown, **options})
    finally:
        del os.environ["RAY_API_SERVER_ADDRESS"]  # a job that this process submits may be for another Ray


def _free_port() -> int:
    for port in random.sample(DASHBOARD_PORTS, len(DASHBOARD_PORTS)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError(f"ports {DASHBOARD_PORTS[0]} to {DASHBOARD_PORTS[-1]} are all taken; Ray's dashboard needs one")
