"""All figures that need an NVIDIA GPU, in one command: run (what is measured when, and kept), page (what is shown).

alone starts a measurement in a process of its own, measure is what runs there; student_training, rendering and
annotation hold what no other benchmark measures, motion the synthetic episodes for them.
"""

from vlaad_ray.experiments.bench.gpu.run import bench_gpu, show

__all__ = ["bench_gpu", "show"]
