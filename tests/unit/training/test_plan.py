"""`--set` changes any field of recipe and network, typed, and tells what it does not know."""

from dataclasses import replace

import pytest

import samkit
from samkit.checkpoints import CheckpointInfo
from samkit.errors import OptionError
from samkit.methods import get_method
from samkit.training.click_task import fitted_spacing
from samkit.training.plan import plan_training


@pytest.mark.parametrize("name", samkit.list_methods())
@pytest.mark.parametrize("preset", ["paper", "small", "tiny"])
def test_every_preset_can_be_planned(name, preset):
    plan = plan_training(get_method(name), preset)

    assert plan.recipe == get_method(name).recipes[preset]
    assert plan.config == get_method(name).sizes[plan.recipe.size]
    assert plan.refinement == get_method(name).refinements[0]


def test_settings_reach_recipe_network_and_refinement():
    settings = ["epochs=3", "learning_rate=1e-3", "patch=48", "global_blocks=0,1", "refinement=anchored", "target=each"]
    plan = plan_training(get_method("m-sam"), "small", settings)

    assert (plan.recipe.epochs, plan.recipe.learning_rate, plan.recipe.target) == (3, 1e-3, "each")
    assert (plan.config.patch, plan.config.global_blocks, plan.refinement) == (48, (0, 1), "anchored")


def test_one_number_is_an_isotropic_spacing_and_stops_the_fitting():
    plan = plan_training(get_method("m-sam"), "small", ["spacing=1.25"])

    assert plan.config.spacing == (1.25, 1.25, 1.25)
    assert not plan.recipe.fit_spacing


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("epoch=3", "no such setting.*epochs"),
        ("epochs", "has no value"),
        ("epochs=many", "not a whole number"),
        ("epochs=0", "must be positive"),
        ("learning_rate=nan", "not a finite number"),
        ("fit_spacing=perhaps", "not true or false"),
        ("spacing=1,2", "3 values"),
        ("crop=middle", "none of click, label"),
        ("target=some", "none of all, each"),
        ("refinement=none", "none of recurrent, anchored"),
        ("precision=8", "none of 32-true"),
        ("size=huge", "none of full, small, tiny"),
        ("heads=0", "heads 0 is not at least 1"),
        ("depth=0", "depth 0 is not at least 1"),
        ("iou_hidden=0", "iou_hidden 0 is not at least 1"),
        ("lora_rank=-1", "lora_rank -1 is below 0"),
        ("adapter_heads=5", "no multiple of 5 adapter_heads"),
        ("decoder_heads=7", "must divide the 96 channels; give a divisor of 48"),
        ("decoder_heads=32", "give a divisor of 48"),  # divides 96, but the cross attention has half of them
        ("global_blocks=1,9", "names 9, the 3 blocks"),
        ("depth=2", "names 2, the 2 blocks"),
        ("adapter=none", "adapter=none has none"),
        ("weight_decay=-1", "must not be negative"),
        ("clip_norm=-1", "must not be negative"),
        ("warmup_steps=-3", "must not be negative"),
        ("stage_growth=-0.5", "must not be negative"),
        ("stage_growth=2", "fraction of the training"),
        ("seed=-1", "must not be negative"),
        ("seed=18446744073709551616", "below 2"),
        ("betas=2,2", "betas=2.0,2.0 must be at least 0 and below 1"),
        ("betas=0.9,1", "below 1"),
        ("milestones=0.5,30", "fractions of the training"),
        ("samples_per_epoch=0", "must be positive"),
    ],
)
def test_wrong_settings_are_told(setting, says):
    with pytest.raises(OptionError, match=says):
        plan_training(get_method("m-sam"), "small", [setting])


def test_settings_at_the_edge_of_their_range_are_taken():
    settings = ["betas=0,0", "seed=0", "clip_norm=0", "warmup_steps=0", "weight_decay=0", "stage_growth=1"]
    settings += ["milestones=", "global_blocks=", "lora_rank=0", "depth=1"]
    plan = plan_training(get_method("m-sam"), "small", settings)

    assert (plan.recipe.betas, plan.recipe.milestones, plan.config.global_blocks) == ((0.0, 0.0), (), ())


def test_start_gives_the_network_and_the_preset_its_additions():
    start = get_method("sam-med3d").sizes["tiny"]
    info = CheckpointInfo("sam-med3d", "tiny", start, "anchored")
    plan = plan_training(get_method("m-sam"), "small", start=info)

    assert (plan.config.width, plan.config.patch, plan.config.spacing) == (start.width, start.patch, start.spacing)
    assert plan.config.adapter == "code"
    assert plan.config.lora_rank > 0
    assert (plan.recipe.fit_spacing, plan.recipe.size, plan.refinement) == (False, "tiny", "recurrent")


def test_weights_of_the_same_method_keep_their_refinement():
    method = get_method("m-sam")
    info = CheckpointInfo("m-sam", "tiny", method.sizes["tiny"], "anchored")

    assert plan_training(method, "small", start=info).refinement == "anchored"
    assert plan_training(method, "small", ["refinement=recurrent"], start=info).refinement == "recurrent"


def test_fitted_spacing_lets_the_largest_object_fill_the_patch():
    assert fitted_spacing((200.0, 200.0, 150.0), 128, 1.0) == (1.65, 1.65, 1.25)
    assert fitted_spacing((3.0, 3.0, 3.0), 64, 1.0) == (0.5, 0.5, 0.5)  # not finer than half a voxel of the data
    assert fitted_spacing((10.0, 80.0, 10.0), 64, 0.5) == (0.7, 1.35, 0.7)  # nor than half the coarsest axis


def test_arch_changes_the_full_encoder_and_nothing_else():
    plan = plan_training(get_method("sam"), "paper", arch="vit_l")

    assert (plan.config.width, plan.config.depth, plan.config.heads) == (1024, 24, 16)
    assert plan.config.image == 1024
    for name, preset, says in (("sam", "small", "full-size networks"), ("m-sam", "paper", "does not have")):
        with pytest.raises(OptionError, match=says):
            plan_training(get_method(name), preset, arch="vit_l")
    start = CheckpointInfo("sam", "full", get_method("sam").sizes["full"], "none")
    with pytest.raises(OptionError, match="leave arch out"):
        plan_training(get_method("sam"), "paper", arch="vit_h", start=start)


def test_a_part_is_planned_alone():
    plan = plan_training(get_method("medsam-yolo"), "small", ["width=16", "epochs=4"], part="detector")

    assert (plan.part, plan.config.width, plan.recipe.epochs) == ("detector", 16, 4)
    assert plan.config.image == get_method("medsam-yolo").sizes["small"].detector.image
    with pytest.raises(OptionError, match="no part 'encoder' that trains alone; it has: detector"):
        plan_training(get_method("medsam-yolo"), "small", part="encoder")


def test_a_larger_base_gives_its_sizes_and_the_method_its_additions():
    given = replace(get_method("sam").sizes["tiny"], width=64, image=256)
    info = CheckpointInfo("sam", "tiny", given, "none")
    plan = plan_training(get_method("lora-sam"), "tiny", start=info)

    assert (plan.config.width, plan.config.image) == (64, get_method("lora-sam").sizes["tiny"].image)
    assert (plan.config.lora_rank, plan.config.masks) == (2, 13)


@pytest.mark.parametrize(
    ("name", "settings", "field", "value"),
    [
        ("brainseg-dmif", "sequences=t1c,t2f", "sequences", ("t1c", "t2f")),
        ("lora-sam", "lora_place=both", "lora_place", "both"),
        ("lora-sam", "lora_targets=qkv", "lora_targets", "qkv"),
    ],
)
def test_options_of_the_papers_are_settings(name, settings, field, value):
    assert getattr(plan_training(get_method(name), "tiny", [settings]).config, field) == value


@pytest.mark.parametrize("value", ["t1c,t2f", "t1c,t1c,t2f", ""])
def test_sequences_that_make_no_picture_are_told(value):
    with pytest.raises(OptionError, match="are not one or three names"):
        plan_training(get_method("medsam-yolo"), "tiny", [f"sequences={value}"])


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("losses=focal:20,dise:1", "losses: dise is none of focal"),
        ("losses=focal", "pairs with commas between"),
        ("losses=", "must each name one"),
        ("prompts=circle", "prompts: circle is none of box"),
        ("augment=warp", "augment: warp is none of"),
        ("optimiser=lion", "none of adam, adamw, sgd"),
        ("output=last", "none of first, best"),
        ("foreground_share=2", "fraction of the slices"),
        ("box_jitter=20,0", "must rise"),
    ],
)
def test_wrong_settings_of_slices_are_told(setting, says):
    with pytest.raises(OptionError, match=says):
        plan_training(get_method("sam-med2d"), "tiny", [setting])
