"""The slice module trains what the recipe names through the exported functions, and validates by the runtime's rule."""

import warnings
from dataclasses import replace

import lightning
import numpy as np
import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision

import samkit
from samkit.methods import get_method
from samkit.methods.method import SliceMethod
from samkit.prompts import ABSENT, BOX_FIRST, BOX_LAST, FOREGROUND
from samkit.training.slice_cases import LoadedCase, SliceCase
from samkit.training.slice_module import SliceModule
from samkit.training.slice_samples import SliceSamples, SliceStore, list_slices
from samkit.training.start import freeze

METHODS = [name for name in samkit.list_methods() if isinstance(get_method(name), SliceMethod)]


def _case(channels, structures):
    def load(case):
        rng = np.random.default_rng(3)
        labels = np.zeros((4, 60, 70), np.uint8)
        labels[1:, 15:35, 20:45] = 1
        if structures:
            labels[1:, 36:50, 20:45] = 2
        images = rng.uniform(20, 60, (4, 60, 70, channels)).astype(np.float32) + 80.0 * labels[..., None]
        return LoadedCase(images, labels, (1.0, 1.0))

    return SliceCase("a", "", (), (), load, (0, 1, 2, 3), plane="axial")


def _module(name, *, frozen=False, **changes):
    method = get_method(name)
    recipe = replace(method.recipes["tiny"], **changes)
    config = method.sizes["tiny"]
    torch.manual_seed(0)
    network = method.build(config)
    if frozen:
        freeze(network, method)
    structures = len(method.structures(config))
    store = SliceStore([_case(max(1, len(method.sequences(config))), structures)], method, config, None)
    samples = SliceSamples(store, [(0, 1, 2, 3)], method, config, recipe)
    return SliceModule(network, method, config, samples, store, list_slices(store, [(1, 2)])[0], recipe)


def _fit(module, epochs=1, plugins=None):
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=epochs, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0, use_distributed_sampler=False, plugins=plugins,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's advice, as in fit.train
        trainer.fit(module)
    return trainer


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_every_method_learns_one_slice(name):
    module = _module(name, learning_rate=1e-2, samples_per_epoch=8, batch=2, epochs=6, augment=(), clip_norm=1.0)
    means = []
    module.on_train_epoch_end = lambda: (means.append(torch.stack(module.losses).mean()), module.losses.clear())

    _fit(module, epochs=6)
    scores = module.validate_held_back()

    assert means[-1] < 0.9 * means[0]
    assert set(scores) == set(module.metrics)
    assert all(0 <= value <= 1 for value in scores.values())


def test_only_what_the_method_does_not_freeze_moves():
    module = _module("sam-med2d", frozen=True, learning_rate=1e-2, samples_per_epoch=2)
    before = {name: value.clone() for name, value in module.network.state_dict().items()}

    _fit(module)
    moved = {name for name, value in module.network.state_dict().items() if not torch.equal(value, before[name])}

    assert any(".Adapter." in name for name in moved)
    assert any(name.startswith("mask_decoder.") for name in moved)
    assert not [name for name in moved if name.startswith("image_encoder.") and ".Adapter." not in name]


def test_error_rounds_step_the_decoder_alone():
    rates = []
    for rounds in (0, 2):
        module = _module("sam-med2d", error_rounds=rounds, samples_per_epoch=2, batch=2, learning_rate=1e-3)
        trainer = _fit(module)
        rates.append((trainer.global_step, module.network.state_dict()))

    assert [steps for steps, _ in rates] == [1, 3]
    (_, once), (_, thrice) = rates
    # Adam's moments move the encoder on in no round: it has no gradient there
    assert all(torch.equal(once[name], thrice[name]) for name in once if name.startswith("image_encoder."))
    assert any(not torch.equal(once[name], thrice[name]) for name in once if name.startswith("mask_decoder."))


@pytest.mark.parametrize(("rounds", "mask_alone"), [(1, set()), (2, {2}), (4, {2, 3, 4})])
def test_error_rounds_click_but_for_the_last_and_one_in_between(rounds, mask_alone, monkeypatch):
    module = _module("sam-med2d", error_rounds=rounds, samples_per_epoch=10, batch=1)
    clicks = []
    ask = module._error_points
    monkeypatch.setattr(module, "_error_points", lambda *given: (clicks.append(given[-1]), ask(*given))[1])

    _fit(module)
    steps = [{1 + int(n) for n in np.flatnonzero(step == 0)} for step in np.reshape(clicks, (10, rounds))]

    assert set().union(*steps) == mask_alone
    assert all(len(silent) == min(rounds - 1, 2) for silent in steps)


@pytest.mark.parametrize(("frozen", "encoded"), [(True, 3), (False, 9)])
def test_embeddings_are_kept_where_nothing_of_the_encoder_trains(frozen, encoded, monkeypatch):
    module = _module("medsam-yolo", frozen=frozen, samples_per_epoch=3, batch=1, epochs=3)
    seen = []
    encode = module.network.encode
    monkeypatch.setattr(module.network, "encode", lambda image: (seen.append(len(image)), encode(image))[1])

    _fit(module, epochs=3)

    assert sum(seen) == encoded


def test_clipping_does_not_hang_on_the_scale_of_half_precision():
    moves = []
    for scale in (4.0, 64.0):
        module = _module("medsam", optimiser="sgd", learning_rate=1.0, clip_norm=0.1, samples_per_epoch=1, batch=1)
        before = torch.nn.utils.parameters_to_vector(module.network.parameters()).detach().clone()
        _fit(module, plugins=[MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale))])
        after = torch.nn.utils.parameters_to_vector(module.network.parameters()).detach()
        moves.append(float((after - before).norm()))

    assert moves == pytest.approx([0.1, 0.1], rel=1e-2)


def test_the_trained_mask_is_the_one_that_the_answer_takes():
    module = _module("sam")
    masks, iou = torch.randn(2, 4, 8, 8), torch.tensor([[0.9, 0.1, 0.8, 0.3], [0.9, 0.1, 0.8, 0.3]])
    click = [[1.0, 2.0, FOREGROUND], [0, 0, ABSENT]]
    box = [[1.0, 2.0, BOX_FIRST], [5.0, 6.0, BOX_LAST]]

    chosen, predicted = module._choose(masks, iou, torch.tensor([click, box]))

    torch.testing.assert_close(chosen[:, 0], torch.stack([masks[0, 2], masks[1, 0]]))
    assert predicted.tolist() == pytest.approx([0.8, 0.9])


def test_rates_follow_the_recipe():
    module = _module("brainseg-dmif", schedule="steps", milestones=(1, 3), decay=0.5, epochs=4, warmup_steps=2)
    module.trainer = type("Trainer", (), {"estimated_stepping_batches": 40})()
    assert [module.rate_factor(step) for step in (0, 1, 9, 10, 30)] == [0.5, 1.0, 1.0, 0.5, 0.25]

    module = _module("lora-sam", schedule="polynomial", decay=0.9, epochs=4, warmup_steps=10)
    module.trainer = type("Trainer", (), {"estimated_stepping_batches": 100})()
    assert module.rate_factor(4) == pytest.approx(0.5)
    assert module.rate_factor(60) == pytest.approx((1 - 50 / 100) ** 0.9)  # SAMed: T counts from the warm-up's end


def test_accumulated_batches_make_one_step():
    module = _module("medsam", accumulate=2, batch=1, samples_per_epoch=3)

    assert _fit(module).global_step == 2  # two batches, then the last one alone
