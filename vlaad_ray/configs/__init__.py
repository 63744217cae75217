"""One frozen dataclass a stage: what a user may set, with defaults for a laptop. Imports nothing heavy."""

from vlaad_ray.configs.bench import (
    BenchAnnotateConfig,
    BenchAuditConfig,
    BenchOpenVlaConfig,
    BenchPolicyConfig,
    BenchRolloutConfig,
    BenchTeacherConfig,
)
from vlaad_ray.configs.bounds import (
    Flat,
    check_bounds,
)
from vlaad_ray.configs.common import (
    EVAL_INIT_STATES,
    STEP_BUDGETS,
    SUITES,
    TAXONOMIES,
    WAIT_FOR_NODES_S,
    ActuationConfig,
    EnvConfig,
    FleetConfig,
    NoiseConfig,
    TeacherNoiseConfig,
    config_hash,
    parse_range,
    teacher_noise_content,
    what_a_checkpoint_is,
)
from vlaad_ray.configs.deploy import (
    ExportConfig,
    ServeClusterConfig,
    ServeConfig,
    ServedStudentConfig,
    ServerConfig,
)
from vlaad_ray.configs.errors import (
    UserError,
    writing,
)
from vlaad_ray.configs.places import (
    Location,
    location,
    places_of,
)
from vlaad_ray.configs.stages import (
    AnnotateConfig,
    AuditConfig,
    CollectConfig,
    EvalConfig,
    PipelineConfig,
    ReportConfig,
    TrainConfig,
)
from vlaad_ray.configs.studies import (
    StudyAlphaConfig,
    StudyBudget,
    StudyDistillationConfig,
    StudyNoiseConfig,
    StudyPhasesConfig,
)
from vlaad_ray.configs.sweep import (
    SpaceConfig,
    SweepConfig,
    TuningConfig,
)
from vlaad_ray.configs.teachers import (
    ServingConfig,
    TeacherConfig,
)
from vlaad_ray.configs.vlm import (
    VlmConfig,
)

__all__ = [
    "EVAL_INIT_STATES",
    "STEP_BUDGETS",
    "SUITES",
    "TAXONOMIES",
    "WAIT_FOR_NODES_S",
    "ActuationConfig",
    "AnnotateConfig",
    "AuditConfig",
    "BenchAnnotateConfig",
    "BenchAuditConfig",
    "BenchOpenVlaConfig",
    "BenchPolicyConfig",
    "BenchRolloutConfig",
    "BenchTeacherConfig",
    "CollectConfig",
    "EnvConfig",
    "EvalConfig",
    "ExportConfig",
    "Flat",
    "FleetConfig",
    "Location",
    "NoiseConfig",
    "PipelineConfig",
    "ReportConfig",
    "ServeClusterConfig",
    "ServeConfig",
    "ServedStudentConfig",
    "ServerConfig",
    "ServingConfig",
    "SpaceConfig",
    "StudyAlphaConfig",
    "StudyBudget",
    "StudyDistillationConfig",
    "StudyNoiseConfig",
    "StudyPhasesConfig",
    "SweepConfig",
    "TeacherConfig",
    "TeacherNoiseConfig",
    "TrainConfig",
    "TuningConfig",
    "UserError",
    "VlmConfig",
    "check_bounds",
    "config_hash",
    "location",
    "parse_range",
    "places_of",
    "teacher_noise_content",
    "what_a_checkpoint_is",
    "writing",
]
