"""sam-bench latency: how long graphs and a reader's steps take."""
