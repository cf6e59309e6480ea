"""A Triton repository from exports: configs, the Python models Triton runs, and a real server on loopback."""
