"""One frozen dataclass a stage: what a user may set, with defaults for a laptop. Imports nothing heavy."""

from vlaad_ray.configs.bench import (
    BenchAnnotateConfig,
    BenchAuditConfig,
    BenchOpenVlaConfig,
    BenchPolicyConfig,
    BenchRolloutConfig,
    BenchTeacherConfig,
)
from vlaad_ray.configs.common import (
    NO_PREFIX,
    TAXONOMIES,
    ActuationConfig,
    Elsewhere,
    EnvConfig,
    Flat,
    FleetConfig,
    NoiseConfig,
    NoSettings,
    TeacherNoiseConfig,
    UserError,
    config_hash,
    parse_range,
    settings_of,
    teacher_noise_content,
)
from vlaad_ray.configs.deploy import (
    ExportConfig,
    ServeClusterConfig,
    ServeConfig,
    ServedStudentConfig,
    ServerConfig,
)
from vlaad_ray.configs.stages import (
    AnnotateConfig,
    AuditConfig,
    CollectConfig,
    EvalConfig,
    PipelineConfig,
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
    OpenVlaConfig,
    RemoteConfig,
    ServingConfig,
)
from vlaad_ray.configs.vlm import (
    VlmConfig,
)

__all__ = [
    "NO_PREFIX",
    "TAXONOMIES",
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
    "Elsewhere",
    "EnvConfig",
    "EvalConfig",
    "ExportConfig",
    "Flat",
    "FleetConfig",
    "NoSettings",
    "NoiseConfig",
    "OpenVlaConfig",
    "PipelineConfig",
    "RemoteConfig",
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
    "TeacherNoiseConfig",
    "TrainConfig",
    "TuningConfig",
    "UserError",
    "VlmConfig",
    "config_hash",
    "parse_range",
    "settings_of",
    "teacher_noise_content",
]
