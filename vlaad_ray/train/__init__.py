"""Stage 3: a student from episodes and annotations, with Ray Data (decoding) and Ray Train (data-parallel workers)."""

from vlaad_ray.train.stage import table, train

__all__ = ["table", "train"]
