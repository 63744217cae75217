"""`vlaad export-dataset` from a checkout: ray job submit --working-dir . -- python jobs/export_dataset.py …"""

from vlaad_ray.main import main

if __name__ == "__main__":
    main("export-dataset")
