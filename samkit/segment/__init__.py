"""sam-segment: scans and prompts in, a mask beside them out."""
