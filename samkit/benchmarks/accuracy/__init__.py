"""sam-bench accuracy: masks of every backend against PyTorch float32 and the truth."""
