"""The click loop: what each decoder step is given, how crops are added, followed and merged, and that undo is exact.

The network here is a stand-in that finds the bright cells connected to the points it is given, so every outcome can
be said beforehand.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from samkit.errors import ExportError, InputRefused
from samkit.geometry import crop, upsample
from samkit.methods import get_method
from samkit.networks.sam3d_config import Sam3DConfig
from samkit.prompts import BACKGROUND, FOREGROUND, Point
from samkit.runtime.backends.runner import HostRunner, check_inputs
from samkit.runtime.loops import refinement
from samkit.runtime.loops.refinement import NO_LOGIT, Refiner, State
from support.stand_ins import grown

PATCH = 32
CONFIG = Sam3DConfig(patch=PATCH, spacing=(1, 1, 1), channels=72, width=24, depth=1, heads=2, window=2, adapter="code")
METHOD = get_method("m-sam")


class Encoder(HostRunner):
    """Keeps the crop, averaged over each logit's cell, as its embedding."""

    graph = METHOD.graphs(CONFIG)[0]
    providers = ("stand-in",)

    def __init__(self):
        self.calls = 0

    def run(self, inputs):
        check_inputs(self.graph, inputs)
        self.calls += 1
        cells = inputs["image"].reshape(8, 4, 8, 4, 8, 4).mean(axis=(1, 3, 5))
        embeddings = np.zeros((1, 72, 2, 2, 2), np.float32)
        embeddings.reshape(-1)[:512] = cells.reshape(-1)
        return {"image_embeddings": embeddings}


class Grower(HostRunner):
    """Foreground: bright cells connected to the point, and to what the mask prompt says. Background: takes off."""

    graph = METHOD.graphs(CONFIG)[1]
    providers = ("stand-in",)

    def __init__(self):
        self.seen = []

    def run(self, inputs):
        check_inputs(self.graph, inputs)
        self.seen.append(inputs)
        bright = inputs["image_embeddings"].reshape(-1)[:512].reshape(8, 8, 8) > 0.5
        logits = np.where(grown(bright, inputs), 5.0, -5.0).astype(np.float32)[None, None]
        return {
            "low_res_masks": logits,
            "iou_predictions": np.zeros((1, 1), np.float32),
            "updated_embeddings": inputs["image_embeddings"] + np.float32(1e-4),
        }


class Stem(HostRunner):
    """Gives features that say which embedding they were made of."""

    graph = METHOD.graphs(CONFIG)[2]
    providers = ("stand-in",)

    def __init__(self):
        self.calls = 0

    def run(self, inputs):
        check_inputs(self.graph, inputs)
        self.calls += 1
        features = np.zeros((1, 2, 2, 2, 72), np.float32)
        features[...] = inputs["image_embeddings"].sum()
        return {"image_features": features}


class AnchoredGrower(Grower):
    graph = METHOD.graphs(CONFIG)[3]


def refiner(volume, refinement_mode="anchored", **options):
    runners = {"image_encoder": Encoder(), "mask_decoder": Grower()}
    made = Refiner(
        METHOD, CONFIG, refinement_mode, runners, volume.shape, lambda origin: crop(volume, origin, PATCH), **options
    )
    return made, runners["image_encoder"], runners["mask_decoder"]


def tissue(shape):
    return (10 + np.indices(shape).sum(axis=0) % 5).astype(np.float32)


def bar(shape, length, axis=0):
    """A bright bar of 8 x 8 voxels along one axis, `length` long, in the middle."""
    volume = tissue(shape)
    box = [slice(n // 2 - 4, n // 2 + 4) for n in shape]
    box[axis] = slice(shape[axis] // 2 - length // 2, shape[axis] // 2 + length // 2)
    volume[tuple(box)] = 200
    return volume


def mask_of(made, state, shape):
    mask = np.zeros(shape, bool)
    for piece in made.merge(state):
        for index in np.argwhere(piece.logits > 0) + piece.origin:
            if ((index >= 0) & (index < shape)).all():
                mask[tuple(index)] = True
    return mask


def dice(one, other):
    return 2 * (one & other).sum() / (one.sum() + other.sum())


def test_each_step_gets_the_newest_point_and_the_logits_before():
    volume = bar((40, 40, 40), 16)
    made, encoder, decoder = refiner(volume)
    state = made.click(State(), Point((20, 20, 20), FOREGROUND))
    made.click(state, Point((21.5, 20, 20), FOREGROUND))

    first, second = decoder.seen
    assert encoder.calls == 1
    assert first["point_coords"].tolist() == [[[16, 16, 16]]]  # the crop is centred on the first click
    assert not first["mask_input"].any()
    assert second["point_coords"].tolist() == [[[17.5, 16, 16]]]
    assert np.array_equal(second["mask_input"][0, 0], state.crops[0].logits)


@pytest.mark.parametrize(("mode", "moves"), [("anchored", False), ("recurrent", True)])
def test_refinement_decides_which_embedding_comes_next(mode, moves):
    made, _, decoder = refiner(bar((40, 40, 40), 16), mode)
    state = State()
    for _ in range(3):
        state = made.click(state, Point((20, 20, 20), FOREGROUND))

    drift = [float((seen["image_embeddings"] - decoder.seen[0]["image_embeddings"]).max()) for seen in decoder.seen]
    assert drift == pytest.approx([0, 1e-4 * moves, 2e-4 * moves], abs=1e-6)


def test_anchored_decoder_gets_features_made_once_per_crop():
    volume = bar((100, 40, 40), 16)
    plain, _, plain_decoder = refiner(volume)
    made, encoder, _ = refiner(volume)
    runners = {"image_encoder": encoder, "adapter_stem": Stem(), "mask_decoder_anchored": AnchoredGrower()}
    made = Refiner(METHOD, CONFIG, "anchored", runners, volume.shape, lambda origin: crop(volume, origin, PATCH))
    states = State(), State()
    for point in (Point((50, 20, 20), FOREGROUND), Point((51, 20, 20), BACKGROUND), Point((80, 20, 20), FOREGROUND)):
        states = plain.click(states[0], point), made.click(states[1], point)

    seen = runners["mask_decoder_anchored"].seen
    assert len(seen) == len(plain_decoder.seen)
    assert all(step["image_features"].max() == step["image_embeddings"].sum() for step in seen)
    assert runners["adapter_stem"].calls == encoder.calls == 2  # two crops
    for ours, theirs in zip(made.merge(states[1]), plain.merge(states[0]), strict=True):
        assert np.array_equal(ours.logits, theirs.logits)


def test_anchored_decoder_is_refused_where_embeddings_are_fed_back():
    runners = {"image_encoder": Encoder(), "adapter_stem": Stem(), "mask_decoder_anchored": AnchoredGrower()}
    with pytest.raises(ExportError, match="refinement is recurrent; leave that runner out"):
        Refiner(METHOD, CONFIG, "recurrent", runners, (40, 40, 40), lambda origin: None)


def test_logits_alone_leave_the_device():
    asked = []

    class Watched(Grower):
        def run_keeping(self, inputs, kept):
            asked.append(kept)
            return super().run_keeping(inputs, kept)

    made, _, _ = refiner(bar((40, 40, 40), 16))
    made._runners["mask_decoder"] = Watched()
    made.click(State(), Point((20, 20, 20), FOREGROUND))

    assert asked == [("iou_predictions", "updated_embeddings")]


def test_one_crop_comes_out_exactly():
    made, _, _ = refiner(bar((40, 40, 40), 16))
    state = made.click(State(), Point((20, 20, 20), FOREGROUND))
    (piece,) = made.merge(state)

    assert np.array_equal(piece.logits, upsample(state.crops[0].logits, 4))


def test_background_click_waits_for_the_first_foreground_one():
    made, _, decoder = refiner(bar((40, 40, 40), 16))
    state = made.click(State(), Point((24, 20, 20), BACKGROUND))
    assert not state.crops
    state = made.click(state, Point((20, 20, 20), FOREGROUND))

    assert [float(seen["point_labels"][0, 0]) for seen in decoder.seen] == [1, 0]
    assert not state.waiting


def test_background_click_outside_every_crop_changes_nothing():
    made, _, _ = refiner(bar((100, 40, 40), 16))
    state = made.click(State(), Point((50, 20, 20), FOREGROUND))

    assert made.click(state, Point((5, 20, 20), BACKGROUND)).crops == state.crops


def test_background_click_goes_to_every_crop_that_contains_it():
    made, _, decoder = refiner(bar((100, 40, 40), 16))
    state = made.click(State(), Point((50, 20, 20), FOREGROUND))  # crop 34..65
    for inside in (33.6, 34.0, 65.4):  # less than 2 voxels from a face
        made.click(state, Point((inside, 20, 20), BACKGROUND))
        assert decoder.seen[-1]["point_labels"].tolist() == [[BACKGROUND]]
        assert decoder.seen[-1]["point_coords"][0, 0, 0] == pytest.approx(inside - 34)
    steps = len(decoder.seen)
    for outside in (33.4, 65.6):
        made.click(state, Point((outside, 20, 20), BACKGROUND))
    assert len(decoder.seen) == steps

    state = made.click(state, Point((65, 20, 20), FOREGROUND))  # crops 34..65 and 50..81
    made.click(state, Point((51, 20, 20), BACKGROUND))
    assert [float(seen["point_coords"][0, 0, 0]) for seen in decoder.seen[-2:]] == [17, 1]


@pytest.mark.parametrize(("i", "crops"), [(63, 1), (65, 2)])
def test_foreground_click_close_to_a_face_gets_a_crop_of_its_own(i, crops):
    made, _, _ = refiner(bar((100, 40, 40), 16))
    state = made.click(State(), Point((50, 20, 20), FOREGROUND))  # crop 34..65

    assert len(made.click(state, Point((i, 20, 20), FOREGROUND)).crops) == crops


def test_foreground_click_outside_every_crop_adds_one_that_shifts_exactly():
    volume = bar((100, 40, 40), 16)
    volume[8:16, 16:24, 16:24] = 200
    made, _, _ = refiner(volume)
    state = made.click(State(), Point((50, 20, 20), FOREGROUND))
    state = made.click(state, Point((12, 21, 19), FOREGROUND))

    assert len(state.crops) == 2
    apart = np.subtract(state.crops[1].origin, state.crops[0].origin)
    assert (apart % 4 == 0).all()
    assert len(made.merge(state)) == 2  # they do not overlap
    assert dice(mask_of(made, state, volume.shape), volume > 100) > 0.7


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("start", ["middle", "end"])
def test_object_larger_than_the_patch_is_followed(axis, start):
    shape = [40, 40, 40]
    shape[axis] = 100
    click = [20.0, 20.0, 20.0]
    click[axis] = 50.0 if start == "middle" else 30.0
    volume = bar(tuple(shape), 48, axis)  # 1.5 patches
    made, _, _ = refiner(volume)
    state = made.click(State(), Point(tuple(click), FOREGROUND))

    fits, _, _ = refiner(bar((40, 40, 40), 16, axis))
    short = fits.click(State(), Point((20, 20, 20), FOREGROUND))
    reference = dice(mask_of(fits, short, (40, 40, 40)), bar((40, 40, 40), 16, axis) > 100)
    assert dice(mask_of(made, state, shape), volume > 100) >= reference
    assert state.followed == len(state.crops) - 1 > 0
    assert not state.limit_reached


def test_object_that_fits_is_not_followed():
    made, encoder, _ = refiner(bar((100, 40, 40), 16))
    state = made.click(State(), Point((50, 20, 20), FOREGROUND))

    assert len(state.crops) == encoder.calls == 1


def test_crops_end_at_the_grids_edge():
    volume = bar((46, 40, 40), 46)
    made, _, _ = refiner(volume)
    state = made.click(State(), Point((18, 20, 20), FOREGROUND))  # crop 2..34

    assert {made_crop.origin[0] for made_crop in state.crops} == {2, -2, 14}
    assert mask_of(made, state, volume.shape)[:, 20, 20].all()


def test_what_is_not_connected_to_a_click_is_not_followed():
    class Careless(Grower):
        def run(self, inputs):
            outputs = super().run(inputs)
            bright = inputs["image_embeddings"].reshape(-1)[:512].reshape(8, 8, 8) > 0.5
            outputs["low_res_masks"][0, 0][bright] = 5.0
            return outputs

    volume = bar((100, 100, 40), 16)
    volume[:, 62:70, 16:24] = 200  # a bar beside it that leaves the crop on both sides
    made, encoder, _ = refiner(volume)
    made._runners["mask_decoder"] = Careless()
    state = made.click(State(), Point((50, 50, 20), FOREGROUND))

    assert mask_of(made, state, volume.shape)[50, 64, 20]  # it is in the mask of the one crop all the same
    assert len(state.crops) == encoder.calls == 1


def test_following_stops_at_its_limit_and_says_so():
    volume = bar((300, 40, 40), 300)
    made, encoder, _ = refiner(volume, max_followed=3)
    state = made.click(State(), Point((150, 20, 20), FOREGROUND))

    assert state.limit_reached
    assert state.followed == 3
    assert encoder.calls == 4


def test_neighbour_without_positive_voxel_is_left_out():
    volume = bar((100, 40, 40), 100)
    made, _, _ = refiner(volume)
    inside = made._read_box
    made._read_box = lambda origin: inside(origin) if origin[0] == 34 else np.zeros((PATCH,) * 3, np.float32)
    state = made.click(State(), Point((50, 20, 20), FOREGROUND))

    assert len(state.crops) == 1


def test_click_into_air_is_refused():
    made, _, _ = refiner(np.zeros((40, 40, 40), np.float32))

    with pytest.raises(InputRefused, match="z-score is undefined"):
        made.click(State(), Point((20, 20, 20), FOREGROUND))


def test_crop_with_nan_is_refused():
    volume = bar((40, 40, 40), 16)
    volume[20, 20, 20] = np.nan
    made, _, _ = refiner(volume)

    with pytest.raises(InputRefused, match="NaN"):
        made.click(State(), Point((20, 20, 20), FOREGROUND))


def test_taking_a_leak_away_takes_its_crops_away():
    volume = bar((100, 40, 40), 100)
    made, _, _ = refiner(volume)
    state = made.click(State(), Point((50, 20, 20), FOREGROUND))
    leaked = state.followed
    state = made.click(state, Point((57, 30, 30), BACKGROUND))  # beside the bar: cells from there on are taken off

    assert leaked > 0
    assert not mask_of(made, state, volume.shape)[72:].any()


def test_click_on_a_followed_crop_makes_it_stay():
    made, _, _ = refiner(bar((100, 40, 40), 48))
    state = made.click(State(), Point((50, 20, 20), FOREGROUND))
    far = max(state.crops, key=lambda c: c.origin[0])
    assert far.clicks == 0
    state = made.click(state, Point((70, 20, 20), FOREGROUND))

    assert next(c for c in state.crops if c.origin == far.origin).clicks == 1


def test_states_are_never_changed():
    made, _, _ = refiner(bar((100, 40, 40), 48), "recurrent")
    state = made.click(State(), Point((50, 20, 20), FOREGROUND))
    before = [piece.logits.copy() for piece in made.merge(state)]
    made.click(made.click(state, Point((60, 20, 20), BACKGROUND)), Point((40, 20, 20), FOREGROUND))

    assert all(np.array_equal(a, b.logits) for a, b in zip(before, made.merge(state), strict=True))


def test_uncovered_corners_of_a_piece_are_background():
    made, _, _ = refiner(tissue((100, 100, 40)))
    one = refinement.Crop((0, 0, 0), np.full((8, 8, 8), 3, np.float32), {}, 1)
    two = replace(one, origin=(16, 16, 0), logits=np.full((8, 8, 8), 1, np.float32))
    (piece,) = made.merge(State((one, two)))

    assert piece.logits.shape == (48, 48, 32)
    assert (piece.logits[32:, :16] == NO_LOGIT).all()
    assert np.allclose(piece.logits[:16, :16], 3)
    assert (np.diff(piece.logits[16:32, 16, 5]) < 0).all()  # from the one to the other without a seam
