"""Serve a student from replicas on a cluster, over openpi's websocket protocol, until it is stopped.

python jobs/serve.py --checkpoint RUN/checkpoint --replicas 2 --gpus-per-replica 0.5
"""

import sys

import tyro

from vlaad_ray.configs import ServeClusterConfig, UserError
from vlaad_ray.deploy.ray_serve import run

if __name__ == "__main__":
    try:
        run(tyro.cli(ServeClusterConfig))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
