"""One frozen dataclass a stage: what a user may set, with defaults for a laptop. Imports nothing heavy."""

from vlaad_ray.configs.bench import (
    BenchAnnotateConfig,
    BenchAuditConfig,
    BenchEvaluationConfig,
    BenchGpuConfig,
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
    TAXONOMIES,
    WAIT_FOR_NODES_S,
    ActuationConfig,
    DaggerConfig,
    EnvConfig,
    FleetConfig,
    NoiseConfig,
    NoSettings,
    TeacherNoiseConfig,
    config_hash,
    parse_range,
    settings_of,
    what_a_checkpoint_is,
)
from vlaad_ray.configs.deploy import (
    ExportConfig,
    ServeClusterConfig,
    ServeConfig,
    ServedStudentConfig,
    ServerConfig,
)
from vlaad_ray.configs.distil import (
    ActDistillConfig,
    DistilConfig,
    HeadsSettings,
    ProbeConfig,
)
from vlaad_ray.configs.doctor import (
    CompletionConfig,
    DoctorConfig,
)
from vlaad_ray.configs.errors import (
    UserError,
    users_errors,
    with_packages,
    writing,
)
from vlaad_ray.configs.exchange import (
    ExportDatasetConfig,
    Hdf5Reading,
    ImportDatasetConfig,
    LeRobotLayout,
    LeRobotReading,
)
from vlaad_ray.configs.machine import (
    Machine,
    machine_flags,
)
from vlaad_ray.configs.names import (
    STUDIES,
    Later,
    Newer,
    content,
    named_settings,
)
from vlaad_ray.configs.places import (
    Location,
    location,
    places_of,
)
from vlaad_ray.configs.records import (
    absent,
    read_record,
    write_record,
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
    StudyFlopsConfig,
    StudyNoiseConfig,
    StudyPhasesConfig,
)
from vlaad_ray.configs.sweep import (
    SpaceConfig,
    SweepConfig,
    TuningConfig,
)
from vlaad_ray.configs.teachers import (
    CheckpointConfig,
    OpenVlaConfig,
    RemoteConfig,
    ServingConfig,
)
from vlaad_ray.configs.vlm import (
    VlmConfig,
)

__all__ = [
    "STUDIES",
    "TAXONOMIES",
    "WAIT_FOR_NODES_S",
    "ActDistillConfig",
    "ActuationConfig",
    "AnnotateConfig",
    "AuditConfig",
    "BenchAnnotateConfig",
    "BenchAuditConfig",
    "BenchEvaluationConfig",
    "BenchGpuConfig",
    "BenchOpenVlaConfig",
    "BenchPolicyConfig",
    "BenchRolloutConfig",
    "BenchTeacherConfig",
    "CheckpointConfig",
    "CollectConfig",
    "CompletionConfig",
    "DaggerConfig",
    "DistilConfig",
    "DoctorConfig",
    "EnvConfig",
    "EvalConfig",
    "ExportConfig",
    "ExportDatasetConfig",
    "Flat",
    "FleetConfig",
    "Hdf5Reading",
    "HeadsSettings",
    "ImportDatasetConfig",
    "Later",
    "LeRobotLayout",
    "LeRobotReading",
    "Location",
    "Machine",
    "Newer",
    "NoSettings",
    "NoiseConfig",
    "OpenVlaConfig",
    "PipelineConfig",
    "ProbeConfig",
    "RemoteConfig",
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
    "StudyFlopsConfig",
    "StudyNoiseConfig",
    "StudyPhasesConfig",
    "SweepConfig",
    "TeacherNoiseConfig",
    "TrainConfig",
    "TuningConfig",
    "UserError",
    "VlmConfig",
    "absent",
    "check_bounds",
    "config_hash",
    "content",
    "location",
    "machine_flags",
    "named_settings",
    "parse_range",
    "places_of",
    "read_record",
    "settings_of",
    "users_errors",
    "what_a_checkpoint_is",
    "with_packages",
    "write_record",
    "writing",
]
