"""Where data lies on disk: paths, the Parquet schema, and how a write becomes visible. Nothing else knows these.

A dataset directory holds one Parquet file an episode, one row a control step (docs/store.md has the columns):

    DIR/episodes/<episode name>.parquet      frames, readable with plain pyarrow.parquet
    DIR/outcomes/<episode name>.json         one small record for every episode that ended, kept or not
    DIR/annotations/<episode name>.parquet   labels, in an annotation directory, a row a frame again
    DIR/answers/<episode name>.parquet       beside them, what a VLM answered, a row a question
    DIR/probes/<episode name>.parquet        what heads say of a teacher's layers, a row a pictured frame (probes.py)
    DIR/audit.parquet, DIR/accepted.parquet  every usable answer, audited; those that a person accepted

DIR is a path or a URI. A reader never sees half a file (vlaad_ray.files); whatever a killed writer leaves behind starts
with a dot and is ignored. All facts about a whole episode lie in the Parquet footer as JSON.
"""

from vlaad_ray.files import read_json, replacing, write_json
from vlaad_ray.store.annotations import (
    annotated_episodes,
    annotation_path,
    annotation_provenance,
    list_annotations,
    read_annotation,
    read_labels,
    write_annotation,
)
from vlaad_ray.store.answers import (
    ANSWER_SCHEMA,
    AUDIT_SCHEMA,
    read_accepted,
    read_answers,
    read_audit,
    write_accepted,
    write_answers,
    write_audit,
)
from vlaad_ray.store.arrays import cached_arrays
from vlaad_ray.store.episodes import (
    EPISODE_SCHEMA,
    JPEG_QUALITY,
    copy_with_actions,
    decode_image,
    encode_jpeg,
    encode_png,
    list_episodes,
    read_embodiment,
    read_episode,
    read_key,
    read_metadata,
    read_pictures,
    stored_episodes,
    survey_episode,
    write_episode,
)
from vlaad_ray.store.outcomes import account_for, read_evaluation, read_outcomes, write_outcome
from vlaad_ray.store.probes import Probes, probed_episodes, probes_facts, probes_path, read_probes, write_probes
from vlaad_ray.store.summaries import read_summary, write_summary

__all__ = [
    "ANSWER_SCHEMA",
    "AUDIT_SCHEMA",
    "EPISODE_SCHEMA",
    "JPEG_QUALITY",
    "Probes",
    "account_for",
    "annotated_episodes",
    "annotation_path",
    "annotation_provenance",
    "cached_arrays",
    "copy_with_actions",
    "decode_image",
    "encode_jpeg",
    "encode_png",
    "list_annotations",
    "list_episodes",
    "probed_episodes",
    "probes_facts",
    "probes_path",
    "read_accepted",
    "read_annotation",
    "read_answers",
    "read_audit",
    "read_embodiment",
    "read_episode",
    "read_evaluation",
    "read_json",
    "read_key",
    "read_labels",
    "read_metadata",
    "read_outcomes",
    "read_pictures",
    "read_probes",
    "read_summary",
    "replacing",
    "stored_episodes",
    "survey_episode",
    "write_accepted",
    "write_annotation",
    "write_answers",
    "write_audit",
    "write_episode",
    "write_json",
    "write_outcome",
    "write_probes",
    "write_summary",
]
