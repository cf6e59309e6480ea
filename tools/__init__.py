"""One question each, for those who build samkit: not in the wheel, run from a checkout as `python -m tools.NAME`."""
