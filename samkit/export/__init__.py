"""From a checkpoint to checked ONNX files: plan, graphs, precision, parity, and the command `sam-export`."""
