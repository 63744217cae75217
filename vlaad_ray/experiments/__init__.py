"""What stands on whole stages: sweeps, studies of the paper's claims, benchmarks."""
