"""Exports without networks: real plans and manifests of every method, whose ONNX files are a few bytes of text."""

from __future__ import annotations

from dataclasses import replace

import pytest

from samkit.engine_libraries import RTX, TENSORRT
from samkit.manifest import ExportPlan, Manifest, Weights, describe_files
from samkit.methods import get_method


@pytest.fixture
def paper_export(tmp_path, monkeypatch):
    """Return a function that makes an export of a method's tiny network on paper, and gives its folder."""
    # ONNX Runtime can't open a text
    monkeypatch.setattr("samkit.triton_models.checks._in_graph_files", lambda export, folder: iter(()))

    def make(name, folder=None, *, precision="fp32", engines=(), rtx=(), beside=(), **changes):
        folder = tmp_path / (folder or f"export-{name}")
        folder.mkdir()
        method = get_method(name)
        config = method.sizes["tiny"]
        refinement = method.refinements[-1]
        plan = ExportPlan(
            method=name,
            weights=Weights("random", None, None),
            size="tiny",
            config=config,
            refinement=refinement,
            precision=precision,
            folded=True,
            opset=20,
            graphs=tuple(graph.name for graph in method.graphs(config) if graph.is_in(refinement, True)),
        )
        plan = replace(plan, **{key: value for key, value in changes.items() if key in plan.__dict__})
        built = {
            TENSORRT.engine_file(graph, p): {
                "graph": graph,
                "precision": p,
                "files": [TENSORRT.engine_file(graph, p)],
                "gpu": "H100",
            }
            for graph, p in engines
        }
        built |= {
            RTX.engine_file(graph, p): {
                "library": "rtx",
                "graph": graph,
                "precision": p,
                "files": [RTX.engine_file(graph, p)],
                "tensorrt_rtx": "1.7.1.116",
                "target": "portable",
                "platform": "linux",
            }
            for graph, p in rtx
        }
        files = [*plan.files, *built, *beside]
        for file in files:
            (folder / file).write_text(f"{file} of {name}")
        rest = {key: value for key, value in changes.items() if key not in plan.__dict__}
        Manifest(plan, describe_files(folder, files), {}, None, engines=built, **rest).save(folder)
        return folder

    return make
