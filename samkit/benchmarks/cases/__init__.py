"""Cases of a benchmark: of a folder of scans or pictures, and phantoms."""
