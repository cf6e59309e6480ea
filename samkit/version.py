"""The version of samkit: what commands, records of exports and servers say, and what a release is checked by."""

__version__ = "0.1.0"
