"""Datasets of others: formats that ours are written in, sources that ours are made of.

A new one is one file here and one line in FORMATS or SOURCES. What they import beyond the pipeline's packages waits
until one is chosen.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from vlaad_ray.configs import (
    ExportDatasetConfig,
    Hdf5Reading,
    ImportDatasetConfig,
    LeRobotLayout,
    LeRobotReading,
    with_packages,
)
from vlaad_ray.exchange.records import Format, Plan, Source
from vlaad_ray.summaries import ExportDatasetSummary

__all__ = ["FORMATS", "SOURCES", "Format", "Plan", "Source"]


def _to_lerobot(config: ExportDatasetConfig, layout: LeRobotLayout) -> ExportDatasetSummary:
    from vlaad_ray.exchange.lerobot.export import write

    return write(config, layout)


def _from_lerobot(config: ImportDatasetConfig, reading: LeRobotReading) -> Plan:
    from vlaad_ray.exchange.lerobot.source import plan

    return plan(config, reading)


def _from_hdf5(config: ImportDatasetConfig, reading: Hdf5Reading) -> Plan:
    with_packages(lambda: importlib.import_module("h5py"), "--source hdf5", "vlaad-ray[sources]")
    from vlaad_ray.exchange.hdf5 import plan

    return plan(config, reading)


def _replay(config: ImportDatasetConfig, reading: Hdf5Reading, plan: Plan) -> Sequence[Any]:
    from vlaad_ray.exchange.replay import replay

    return replay(config, reading, plan)


FORMATS: dict[str, Format] = {"lerobot": Format(LeRobotLayout, _to_lerobot)}
SOURCES: dict[str, Source] = {
    "lerobot": Source(LeRobotReading, _from_lerobot),
    "hdf5": Source(Hdf5Reading, _from_hdf5, _replay),
}
