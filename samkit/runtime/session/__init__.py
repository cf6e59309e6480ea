"""Sessions: a scan set once, prompted many times, with undo; volumes and slices in this process."""
