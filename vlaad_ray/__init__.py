"""VLA-AD distillation on Ray: a small student learns a large VLA teacher's skill, and then acts alone.

The way of the data:

    teacher x env --rollout--> episodes --annotate--> annotations --train--> checkpoint --evaluate--> success rates
                               (Parquet)              (Parquet)                  |
                                                                                 `--deploy--> a policy that runs alone

Each arrow is a module of that name. Stages meet only through what is stored, so each can be run, resumed, replaced and
tested by itself.
"""

__version__ = "0.1.0"
