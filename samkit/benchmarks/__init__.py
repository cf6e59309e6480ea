"""What samkit is worth, measured: the demo, and timings as ratios within one run."""
