"""`python -m vlaad_ray.report RUN`: write RUN/report.html again, from what is there."""

import sys
from pathlib import Path

from vlaad_ray.configs import users_errors
from vlaad_ray.report import write_report

if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m vlaad_ray.report RUN")
    with users_errors():
        print(write_report(Path(sys.argv[1])))
