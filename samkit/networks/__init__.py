"""The networks. torch lives here; modules named *_config can be imported without it."""
