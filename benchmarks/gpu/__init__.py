"""Parts of bench_gpu.py: clips, limits of the machine, Strata's stages, peers, report."""
