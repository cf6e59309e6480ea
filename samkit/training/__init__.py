"""Training: cases from a folder, the refinement loop with simulated clicks, `sam-train`."""
