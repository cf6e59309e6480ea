"""The loop over slices: batches, what is never encoded, the window, structures, and what leads on to neighbours."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from samkit.methods import sam
from samkit.methods.method import Answer, GraphSpec
from samkit.placement import Placement
from samkit.prompts import FOREGROUND, SliceBox, SlicePoint, SlicePrompts
from samkit.runtime.backends.runner import HostRunner
from samkit.runtime.loops.embeddings import Embeddings
from samkit.runtime.loops.slices import Slices, either
from samkit.tensors import Axis, TensorSpec, on_host

SIDE = 24


class Encoder(HostRunner):
    """Passes its images on, and counts them."""

    def __init__(self, side=SIDE, most=4):
        axes = (
            Axis("batch", 1, 1, most),
            Axis.fixed("channel", 1),
            Axis.fixed("row", side),
            Axis.fixed("column", side),
        )
        self.graph = GraphSpec("image_encoder", (TensorSpec("image", "float32", axes),), (), {})
        self.batches = []

    def run(self, inputs):
        self.batches.append(len(inputs["image"]))
        return {"image_embeddings": inputs["image"]}


def preprocess(image, config):
    placement = Placement(image.shape[:2], SIDE, image.shape[:2])
    return placement.place(image.transpose(2, 0, 1)), placement


def answer(run, embeddings, placement, prompts, config):
    """Label 1 where it is bright, 2 where it is very bright; inside the boxes of the label's name, where there are."""
    height, width = placement.shape
    image = embeddings[0, 0, :height, :width]
    labels = (image > 100).astype(np.uint8) + (image > 200)
    if prompts.boxes:
        allowed = np.zeros_like(labels)
        for box in prompts.boxes:
            number = 1 + ("one", "two").index(box.structure)
            region = np.s_[int(box.y0) : int(box.y1) + 1, int(box.x0) : int(box.x1) + 1]
            allowed[region] = np.where(labels[region] == number, number, allowed[region])
        labels = allowed
    return Answer(labels, np.where(labels > 0, image, -1).astype(np.float32), low_res=np.ones((1, 1, 6, 6)))


METHOD = replace(
    sam.METHOD,
    preprocess=preprocess,
    answer=answer,
    is_automatic=True,
    structures=lambda config: ("one", "two"),
)


def stack():
    """Ten slices: a bright and a very bright patch in 2 to 6, dim tissue in 1 to 8, nothing in the others."""
    slices = np.zeros((10, 16, 20), np.float32)
    slices[1:9, 2:14, 2:18] = 10
    slices[2:7, 4:8, 4:10] = 150
    slices[2:5, 9:12, 12:16] = 250
    return slices


def make(method=METHOD, slices=None, **options):
    encoder = Encoder()
    return Slices(method, None, {"image_encoder": encoder}, [stack() if slices is None else slices], **options), encoder


def test_slices_without_prompts_go_in_batches_and_empty_ones_not_at_all():
    slices, encoder = make()
    found = list(slices.automatic(range(10)))

    assert [one.number for one in found] == list(range(1, 9))
    assert encoder.batches == [4, 4]
    assert all(
        np.array_equal(one.answer.labels, (stack()[one.number] > 100) * 1 + (stack()[one.number] > 200))
        for one in found
    )
    assert all(one.answer.low_res is None for one in found)  # nobody's next prompt, and large


def test_large_inputs_go_one_by_one():
    slices, encoder = make()
    encoder.graph = Encoder(side=1024, most=8).graph

    assert len(list(slices.automatic(range(10)))) == 8
    assert encoder.batches == [1] * 8


def test_batches_are_made_as_they_are_asked_for():
    slices, encoder = make()
    next(slices.automatic(range(10)))

    assert encoder.batches == [4]


def test_slice_where_the_detector_finds_nothing_is_not_encoded():
    def propose(run, image, config):
        return SlicePrompts(boxes=(SliceBox(0, 0, 19, 15, "two"),) * 2 if image.max() > 200 else ())

    slices, encoder = make(replace(METHOD, propose=propose))
    found = list(slices.automatic(range(10)))

    assert [(one.number, one.boxes) for one in found] == [(2, 2), (3, 2), (4, 2)]
    assert encoder.batches == [3]
    assert set(np.unique(found[0].answer.labels)) == {0, 2}


def test_embeddings_are_kept_up_to_their_limit():
    slices, encoder = make(embeddings=Embeddings(2 * SIDE * SIDE * 4).open("a scan"))
    for number in (2, 3, 2, 4, 2, 3):  # 3 was used longest ago when 4 came
        slices.answer(number, SlicePrompts())

    assert len(encoder.batches) == 4


class Kept:
    """A tensor that stays where it is until it is asked for."""

    def __init__(self, array):
        self.array, self.shape, self.nbytes, self.copies = array, array.shape, array.nbytes, 0

    def numpy(self):
        self.copies += 1
        return self.array


@pytest.mark.parametrize(("most", "copies"), [(1, 0), (4, 1)])
def test_embedding_stays_on_the_device_unless_a_batch_is_taken_apart(most, copies):
    made, answered = [], []

    class OnDevice(Encoder):
        def run_keeping(self, inputs, kept):
            assert list(kept) == ["image_embeddings"]
            made.append(Kept(self.run(inputs)["image_embeddings"]))
            return {"image_embeddings": made[-1]}

    def watched(run, embeddings, placement, prompts, config):
        answered.append(embeddings)
        return answer(run, on_host(embeddings) if most > 1 else embeddings.array, placement, prompts, config)

    method = replace(METHOD, answer=watched)
    slices = Slices(method, None, {"image_encoder": OnDevice(most=most)}, [stack()])
    found = list(slices.automatic(range(10)))
    assert len(found) == 8
    assert {tensor.copies for tensor in made} == {copies}
    expected = [one.answer.labels for one in make()[0].automatic(range(10))]
    assert all(np.array_equal(one.answer.labels, labels) for one, labels in zip(found, expected, strict=True))
    if most == 1:
        slices.answer(3, SlicePrompts())
        slices.answer(3, SlicePrompts())
        assert answered[-1] is answered[-2] is made[-1]


def test_window_is_cut_and_answers_are_pasted_back():
    seen = []

    def looking(run, embeddings, placement, prompts, config):
        seen.append((placement.shape, prompts))
        return answer(run, embeddings, placement, prompts, config)

    slices, _ = make(replace(METHOD, window=lambda config: (8, 24), answer=looking))
    whole, _ = make()
    prompts = SlicePrompts((SlicePoint(5, 6, FOREGROUND, "one"),), (SliceBox(3, 5, 10, 8, "one"),))
    cut, uncut = slices.answer(3, prompts), whole.answer(3, prompts)

    assert cut.labels.shape == uncut.labels.shape == (16, 20)
    expected = uncut.labels.copy()
    expected[:4] = expected[12:] = 0  # the bright rows 2 to 13 have their middle in 4 to 11
    assert np.array_equal(cut.labels, expected)
    assert (cut.scores[:4] == -20).all()
    ((shape, moved),) = seen
    assert shape == (8, 24)
    assert moved.boxes == (SliceBox(5, 1, 12, 4, "one"),)  # columns 2 to 17 in the middle of 24: they begin at -2
    assert moved.points == (SlicePoint(7, 2, FOREGROUND, "one"),)
    assert slices.holds(0, 4)
    assert slices.holds(19, 11.5)
    assert not slices.holds(5, 3)


def test_mask_leads_on_until_it_vanishes_structure_by_structure():
    slices, encoder = make()
    found = slices.neighbours({3: slices.answer(3, SlicePrompts())}, [3])

    assert sorted(found) == [2, 4, 5, 6]
    assert set(np.unique(found[4].labels)) == {0, 1, 2}
    assert set(np.unique(found[5].labels)) == {0, 1}
    assert np.array_equal(found[6].labels, (stack()[6] > 100).astype(np.uint8))
    assert len(encoder.batches) == 1 + 6  # 1 and 7 were asked, too, and showed nothing of it


def test_prompted_slices_stop_what_comes_from_others():
    slices, _ = make()

    assert sorted(slices.neighbours({3: slices.answer(3, SlicePrompts())}, [3, 5])) == [2, 4]


def test_box_is_enlarged_within_the_slice_and_small_parts_lead_nowhere():
    slices, _ = make()
    labels = np.zeros((16, 20), np.uint8)
    labels[3:5, 4:14] = 2
    labels[5, 14] = 2  # touches by its corner
    labels[12:14, 18:20] = 1  # four pixels
    labels[14, 0:9] = 1

    assert slices.boxes_of(labels).boxes == (
        SliceBox(0, pytest.approx(11.95), pytest.approx(10.45), 15, "one"),
        SliceBox(pytest.approx(1.45), pytest.approx(0.85), pytest.approx(16.55), pytest.approx(7.15), "two"),
    )


def test_union_takes_the_surer_of_two():
    one = Answer(np.array([[1, 1, 0, 0]], np.uint8), np.array([[3, 1, -4, -1]], np.float32))
    other = Answer(np.array([[2, 2, 2, 0]], np.uint8), np.array([[2, 2, 1, -2]], np.float32))

    assert either(one, other).labels.tolist() == [[1, 2, 2, 0]]
    assert either(one, other).scores.tolist() == [[3, 2, 1, -1]]


def test_time_is_told_by_stage():
    slices, _ = make()
    slices.answer(3, SlicePrompts())

    assert set(slices.seconds) == {"prepare", "propose", "encode", "decode"}
    assert slices.seconds["propose"] == 0
