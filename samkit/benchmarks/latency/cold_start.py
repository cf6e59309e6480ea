"""From nothing to the first mask: what a new process does that opens an export, reads a scan and answers one prompt.

`stages.py` calls `first_mask` in one. What is imported up here is what `sam-segment` imports, and no more.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from samkit.benchmarks.latency.settings import EAGER
from samkit.benchmarks.measure.originals import original_network, original_runners
from samkit.benchmarks.measure.processes import resident_mb
from samkit.imageio.study import read_study
from samkit.manifest import Export
from samkit.prompts import prompts_from_json
from samkit.runtime.opening import make_session, open_export
from samkit.runtime.session.base import Session


def open_reader(
    folder: Path, *, backend: str, precision: str, device: str = "cpu", threads: int | None = None
) -> Session:
    """Return a session on an export folder by a backend of `open_export`, and raise as that does; EAGER is upstream's
    formulation here, LoRA apart, and not what `open_export` calls by that name.
    """
    if backend != EAGER:
        return open_export(folder, backend=backend, precision=precision, device=device, threads=threads)
    export = Export.open(folder, verify=False)
    network = original_network(export.plan, device=device, threads=threads)
    return make_session(export, original_runners(network, export.plan, device), precision)


def first_mask(export: str, files: Mapping[str, str], prompts: list[Any], opening: Mapping[str, Any]) -> dict[str, Any]:
    """Answer the first of some prompts, in the form of a clicks file, or decide on the whole scan where there is none.

    `opening` is what `open_reader` is given. Returns the most memory that this process ever held [MB, 10^6 bytes], and
    the mask's voxels.
    """
    with open_reader(Path(export), **opening) as session:
        study = read_study({name: Path(file) for name, file in files.items()})
        session.set_image(study, automatic=False)
        if prompts:
            session.add(prompts_from_json(prompts, "the case")[0])
        else:
            session.segment_automatically()
        return {"peak_mb": resident_mb("VmHWM"), "voxels": int(session.mask().sum())}
