"""The client of a server: the same session, somewhere else."""
