"""Export a checkpoint for ONNX Runtime or OpenVINO, compared with torch on real frames.

python jobs/export.py --checkpoint RUN/checkpoint --backend openvino --precision bf16 --data DATA --out DIR
"""

from vlaad_ray.configs import ExportConfig
from vlaad_ray.export import export, show
from vlaad_ray.runtime.cli import run_job

if __name__ == "__main__":
    run_job(ExportConfig, export, show)
