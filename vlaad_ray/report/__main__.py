"""`python -m vlaad_ray.report RUN`: write RUN/report.html again, from what is there."""

import sys
from pathlib import Path

from vlaad_ray.configs import UserError
from vlaad_ray.report import write_report

if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m vlaad_ray.report RUN")
    try:
        print(write_report(Path(sys.argv[1])))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
