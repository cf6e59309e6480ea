"""sam-bench: accuracy, latency and load of exports against the PyTorch originals, and reports of them."""
