"""How time, memory and machines are measured."""
