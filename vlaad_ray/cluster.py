"""Joining a Ray cluster, or starting one on this machine."""

from __future__ import annotations

import logging
import os

import ray


def connect() -> None:
    """Join the cluster that a submitted job runs in (RAY_ADDRESS), else start Ray here. A second call does nothing."""
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = os.environ.get("RAY_ADDRESS", "local")
    # Says at every start that a local Ray guards itself with a token, which is as it should be.
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    ray.init(address=address, logging_level=logging.WARNING, log_to_driver=True)
