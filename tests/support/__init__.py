"""What several test files use: exports and networks that cost nothing, and what others wrote that ours is held to."""
