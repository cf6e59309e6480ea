"""What a measurement on patients is made of: a case, the simulated reader who prompts, and what papers print of it."""
