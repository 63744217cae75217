"""The stage that writes a dataset in another project's format."""

from __future__ import annotations

from dataclasses import replace

from rich.table import Table

from vlaad_ray import plugins, store
from vlaad_ray.configs import ExportDatasetConfig, settings_of
from vlaad_ray.exchange import FORMATS
from vlaad_ray.runtime import cli, places, record
from vlaad_ray.summaries import ExportDatasetSummary


def export_dataset(config: ExportDatasetConfig) -> ExportDatasetSummary:
    """Complete the dataset that `config` describes; return (and write) its summary."""
    record.begin(config.out, config, {"--data": config.data, "--annotations": config.annotations})
    places.check(config)
    chosen = plugins.lookup("format", FORMATS, config.format)
    layout = chosen.config() if config.layout is None else config.layout
    settings = settings_of(f"format {config.format}", chosen.config, layout)
    summary = replace(chosen.write(config, settings), **record.software())
    store.write_json(config.out / "summary.json", summary)
    return summary


def show(summary: ExportDatasetSummary) -> Table:
    names = ("episodes", "frames", "tasks", "left_out", "written_before", "pictures", "seconds")
    rows = {name.replace("_", " "): getattr(summary, name) for name in names}
    return cli.key_value_table(f"Exported for {summary.format}", rows)
