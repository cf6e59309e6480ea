"""Fixtures of the tests from file to file."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from samkit.methods import SliceMethod
from samkit.phantoms import SEQUENCES, make_phantom
from samkit.prompts import FOREGROUND, Box, Point


@pytest.fixture(scope="session")
def phantom():
    """A head of 2 mm with lesions that no demonstration weights were trained on."""
    return make_phantom(91, (80, 96, 80), 2.0)


@pytest.fixture(scope="session")
def segment(phantom):
    """Return a function from session and method to the mask of the phantom's first lesion: from a click or a box in the
    middle of it, or found by itself where the method takes no prompt.
    """

    def run(session, method):
        scans, voxels = phantom.sequences, np.argwhere(phantom.lesion(1))
        names = method.sequences(session.config) if isinstance(method, SliceMethod) else ()
        # The phantom's own names are in the same order as the method's: t1n, t1c, t2w, t2f.
        known = dict(zip(("t1n", "t1c", "t2w", "t2f"), SEQUENCES, strict=True))
        session.set_image({name: scans[known[name]] for name in names} if names else scans["flair"], automatic=False)
        if not isinstance(method, SliceMethod):
            session.add(Point(tuple(map(float, voxels[len(voxels) // 2])), FOREGROUND))
        elif not method.prompts:
            session.segment_automatically()
        else:
            axis = {"axial": 2, "coronal": 1, "sagittal": 0}[method.plane]
            slices, counts = np.unique(voxels[:, axis], return_counts=True)
            inside = voxels[voxels[:, axis] == slices[counts.argmax()]]
            session.add(Box(tuple(map(float, inside.min(axis=0))), tuple(map(float, inside.max(axis=0)))))
        return session.mask()

    return run


@pytest.fixture
def sam_train(in_process):
    """Return a function that runs `sam-train` in this process and gives its exit code, stdout and stderr."""
    import torch

    from samkit.training import cli

    threads = torch.get_num_threads()
    yield functools.partial(in_process, cli.main, "sam-train")
    torch.set_num_threads(threads)
