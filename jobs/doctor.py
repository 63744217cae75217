"""`vlaad doctor` from a checkout: ray job submit --working-dir . -- python jobs/doctor.py …"""

from vlaad_ray.main import main

if __name__ == "__main__":
    main("doctor")
