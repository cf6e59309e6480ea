"""What is segmented in a benchmark, and who clicks."""
