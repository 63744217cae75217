"""`vlaad serve` from a checkout: ray job submit --working-dir . -- python jobs/serve.py …"""

from vlaad_ray.main import main

if __name__ == "__main__":
    main("serve")
