"""Files wherever they lie, on a disk or in an object store: written whole, listed at once, copied here, hashed.

Knows nothing of what is in them: that is store's (data) and models' (checkpoints). It stands below both, so that a
deployed student does without pyarrow.
"""

from vlaad_ray.files.hashing import Part, sha256
from vlaad_ray.files.reading import children, descendants, local_copy, parse_json, read_bytes, read_json
from vlaad_ray.files.remote import asking, in_parallel, opened, reach
from vlaad_ray.files.writing import filling, put_all, remove_tree, replacing, replacing_directory, write_json

__all__ = [
    "Part",
    "asking",
    "children",
    "descendants",
    "filling",
    "in_parallel",
    "local_copy",
    "opened",
    "parse_json",
    "put_all",
    "reach",
    "read_bytes",
    "read_json",
    "remove_tree",
    "replacing",
    "replacing_directory",
    "sha256",
    "write_json",
]
