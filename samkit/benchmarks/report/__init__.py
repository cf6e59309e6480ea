"""sam-bench report and compare: tables and pictures of runs; nothing here runs a network."""
