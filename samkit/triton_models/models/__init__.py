"""What `sam-serve write` copies into a repository: one file for each Python model."""
