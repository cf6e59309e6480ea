"""sam-bench load: readers on a server, and how cost grows."""
