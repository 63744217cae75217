"""Ways to teach a student, each a record of functions (method): columns of the data, what is trained, the loss."""

from vlaad_ray.methods.actdistill import ACTDISTILL, PROBE
from vlaad_ray.methods.bc import BC
from vlaad_ray.methods.method import Method
from vlaad_ray.methods.vlaad import AUXILIARY, BOTH, DUAL_PATH

METHODS: dict[str, Method] = {
    "dual_path": DUAL_PATH,
    "auxiliary": AUXILIARY,
    "bc": BC,
    "both": BOTH,
    "probe": PROBE,
    "actdistill": ACTDISTILL,
}
"""--objective -> how it teaches. One line makes another (docs/extending.md)."""
