"""The networks. torch lives here; `sam3d_config` alone can be imported without it."""
