"""Images from files and back: one record of a scan, one list of readers, one gate for all commands."""
