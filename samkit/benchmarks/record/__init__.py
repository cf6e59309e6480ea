"""What a benchmark writes: runs, their rows, and the figures in them."""
