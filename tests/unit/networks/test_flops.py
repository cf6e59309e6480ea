"""Guards the honesty of the baseline that speed is measured against: `--no-fold` does the official networks' work.

The official figures were counted on the authors' own classes with the same counter (ViT-B 1024 and 256, SAM-Med3D,
M-SAM with LoRA of rank 4). Nothing is computed here: shapes alone are counted.
"""

from dataclasses import replace

import pytest

import samkit
from samkit.benchmarks.measure.graph_work import count_flops

SAM, MED3D, M_SAM = (samkit.get_method(name) for name in ("sam", "sam-med3d", "m-sam"))
FULL, FULL_3D = SAM.sizes["full"], MED3D.sizes["full"]
AT_256 = replace(FULL, image=256)  # the encoder of SAM-Med2D without its adapters
RANK_4 = replace(M_SAM.sizes["full"], lora_rank=4)  # what the authors' script trains; a merged update costs nothing


def spec_of(method, config, name):
    return next(graph for graph in method.graphs(config) if graph.name == name)


@pytest.mark.parametrize(
    ("method", "config", "gflop"),
    [(SAM, FULL, 972.1), (SAM, AT_256, 69.0), (MED3D, FULL_3D, 368.6), (M_SAM, RANK_4, 369.2)],
    ids=["vit-b 1024", "vit-b 256", "sam-med3d 128", "m-sam 128"],
)
def test_unfolded_encoder_does_the_official_work(method, config, gflop):
    counted = count_flops(method, config, spec_of(method, config, "image_encoder"), folded=False)

    assert counted == pytest.approx(gflop, rel=0.01)


@pytest.mark.parametrize(
    ("method", "config", "rows", "points", "gflop"),
    [
        # The figures of one and of ten clicks leave out the padding token that every pipeline adds to its points. Our
        # graphs hold it always, so the same number of tokens is one point fewer.
        (SAM, FULL, 1, 0, 3.64),
        (SAM, FULL, 1, 9, 3.79),
        (MED3D, FULL_3D, 1, 0, 1.45),
        (MED3D, FULL_3D, 1, 9, 1.56),
        # Here it was counted: a click as users make it.
        (SAM, FULL, 1, 1, 3.64),
        (SAM, FULL, 12, 1, 43.9),
        (MED3D, FULL_3D, 1, 1, 1.467),
        (MED3D, FULL_3D, 12, 1, 17.6),
        (M_SAM, RANK_4, 1, 1, 20.22),
    ],
)
def test_unfolded_click_does_the_official_work(method, config, rows, points, gflop):
    graph = spec_of(method, config, "mask_decoder")

    counted = count_flops(method, config, graph, folded=False, rows=rows, points=points)

    assert counted == pytest.approx(gflop, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("name", samkit.list_methods())
def test_folding_adds_no_work_to_an_image_or_a_click(name):
    method = samkit.get_method(name)
    config = method.sizes["full"]
    for graph in (spec_of(method, config, kind) for kind in ("image_encoder", "mask_decoder")):
        folded, official = (count_flops(method, config, graph, folded=fold) for fold in (True, False))

        assert 0 < folded <= official, graph.name
