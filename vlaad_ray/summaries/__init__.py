"""What stages say of their work: one record a stage, its summary.json.

Other stages, the report, sweeps and studies read them back (store.read_summary). A key that came later has a default,
so that older files are read, too.
"""

from vlaad_ray.summaries.annotation import (
    Agreed,
    AnnotatedCounts,
    AnnotateSummary,
    AnswersAudit,
    Decisions,
    Faults,
    Flicker,
    Forecast,
    Judged,
    PhaseAgreement,
    Steadiness,
    Tokens,
    VlmSeconds,
    VlmSummary,
)
from vlaad_ray.summaries.audit import (
    AuditedCounts,
    AuditSummary,
    EpisodeNoise,
    Noise,
    PhaseNoise,
    RepairCounts,
    TaskNoise,
)
from vlaad_ray.summaries.collection import CollectSummary, EpisodeCounts, TaskCounts
from vlaad_ray.summaries.distillation import ProbeSummary, RoutesSummary
from vlaad_ray.summaries.evaluation import EvalSummary
from vlaad_ray.summaries.exchange import ExportDatasetSummary, ImportDatasetSummary, Replayed
from vlaad_ray.summaries.rates import Comparison, Paired, Success, Successes, TaskSuccesses
from vlaad_ray.summaries.training import SplitCounts, TrainSummary

__all__ = [
    "Agreed",
    "AnnotateSummary",
    "AnnotatedCounts",
    "AnswersAudit",
    "AuditSummary",
    "AuditedCounts",
    "CollectSummary",
    "Comparison",
    "Decisions",
    "EpisodeCounts",
    "EpisodeNoise",
    "EvalSummary",
    "ExportDatasetSummary",
    "Faults",
    "Flicker",
    "Forecast",
    "ImportDatasetSummary",
    "Judged",
    "Noise",
    "Paired",
    "PhaseAgreement",
    "PhaseNoise",
    "ProbeSummary",
    "RepairCounts",
    "Replayed",
    "RoutesSummary",
    "SplitCounts",
    "Steadiness",
    "Success",
    "Successes",
    "TaskCounts",
    "TaskNoise",
    "TaskSuccesses",
    "Tokens",
    "TrainSummary",
    "VlmSeconds",
    "VlmSummary",
]
