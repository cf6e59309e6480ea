"""Guards equality of MHPM with the block it comes from: golden outputs nobody here made."""

import numpy as np
import torch

from samkit.networks.mhpm import Mhpm


def test_block_gives_the_outputs_of_its_ancestor(shared, recipe):
    state = recipe.state_dict(shared / "keys" / "egeunet_ghpa_256_256.json", "open")
    block = Mhpm(256, 256, grid=16)
    block.load_state_dict({name: torch.from_numpy(np.asarray(value)) for name, value in state.items()})
    image = torch.from_numpy(recipe.noise("open/mhpm/input", (2, 256, 16, 16)))
    golden = torch.from_numpy(np.load(shared / "golden" / "mhpm.npz")["output_sub"])
    for frozen in (False, True):
        if frozen:
            block.freeze()
        with torch.no_grad():
            output = block(image)[:, ::2]
        assert float((output - golden).norm() / golden.norm()) < 1e-6
