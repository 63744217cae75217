"""`vlaad import-dataset` from a checkout: ray job submit --working-dir . -- python jobs/import_dataset.py …"""

from vlaad_ray.main import main

if __name__ == "__main__":
    main("import-dataset")
