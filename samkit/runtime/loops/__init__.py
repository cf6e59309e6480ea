"""The loops of inference: refinement of a volume crop by crop, a volume slice by slice."""
