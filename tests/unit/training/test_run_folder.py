"""A run's folder is started in once, and gone on with only by the run that it holds."""

import copy
import json
from dataclasses import replace

import pytest

from samkit.errors import InputRefused
from samkit.methods import get_method
from samkit.training.plan import plan_training
from samkit.training.run_folder import check_run_folder, check_same_run, read_metrics, read_run, write_run


@pytest.fixture
def facts():
    plan = plan_training(get_method("m-sam"), "small", ["spacing=1.5", "epochs=5"])
    return {
        "plan": plan.to_dict(),
        "init": {"file": "base.safetensors", "sha256": "3f9a1c" * 10},
        "data": {"cases": 5, "trained_on": 4, "held_back": 1},
        "state": "running",
    }


def test_a_run_that_failed_before_its_first_epoch_may_be_started_again(tmp_path, facts):
    write_run(tmp_path, facts)
    (tmp_path / "tensorboard").mkdir()

    check_run_folder(tmp_path, resume=False)
    with pytest.raises(InputRefused, match="leave resume to start one"):
        check_run_folder(tmp_path, resume=True)


@pytest.mark.parametrize("what", ["an epoch", "finished", "unreadable", "no run.json"])
def test_a_folder_with_anything_to_lose_is_not_started_in(tmp_path, facts, what):
    write_run(tmp_path, facts | {"state": "finished"} if what == "finished" else facts)
    if what == "an epoch":
        (tmp_path / "last.ckpt").write_bytes(b"")
    elif what == "unreadable":
        (tmp_path / "run.json").write_text('{"state": "running"')
    elif what == "no run.json":
        (tmp_path / "run.json").rename(tmp_path / "notes.json")

    with pytest.raises(InputRefused, match="is not empty"):
        check_run_folder(tmp_path, resume=False)


def test_the_same_run_goes_on_and_may_train_longer(tmp_path, facts):
    write_run(tmp_path, facts)
    longer = plan_training(get_method("m-sam"), "small", ["spacing=1.5", "epochs=9"])

    check_same_run(tmp_path, read_run(tmp_path), facts | {"plan": longer.to_dict()})


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (("plan", "method"), "sam-med3d", "method was m-sam and is sam-med3d now"),
        (("plan", "config", "spacing"), (3.5, 3.5, 3.5), "spacing was 1.5,1.5,1.5 and is 3.5,3.5,3.5 now"),
        (("plan", "config", "adapter"), None, "adapter was code and is none now"),
        (("plan", "recipe", "learning_rate"), 0.5, "learning_rate was 0.001 and is 0.5 now"),
        (("plan", "recipe", "fit_spacing"), True, "fit_spacing was False and is True now"),
        (("plan", "refinement"), "anchored", "refinement was recurrent and is anchored now"),
        (("plan", "label"), 2, "label was none and is 2 now"),
        (("data", "cases"), 6, "cases was 5 and is 6 now"),
        (("init",), None, r"init was base.safetensors \(SHA-256 3f9a1c3f\) and is none now"),
    ],
)
def test_another_run_is_refused_by_what_differs(tmp_path, facts, path, value, says):
    now = copy.deepcopy(facts)
    part = now
    for name in path[:-1]:
        part = part[name]
    part[path[-1]] = value

    with pytest.raises(InputRefused, match=says):
        check_same_run(tmp_path, json.loads(json.dumps(facts)), now)


def test_fewer_epochs_than_were_trained_are_refused(tmp_path, facts):
    (tmp_path / "metrics.csv").write_text("epoch,loss\n0,1\n1,1\n2,1\n")
    plan = plan_training(get_method("m-sam"), "small", ["spacing=1.5"])
    now = {**facts, "plan": replace(plan, recipe=replace(plan.recipe, epochs=2)).to_dict()}

    with pytest.raises(InputRefused, match=r"has trained 3 epochs and epochs=2 asks for fewer"):
        check_same_run(tmp_path, json.loads(json.dumps(facts)), now)


@pytest.mark.parametrize("content", ["", "\0" * 4096, "a,b\n1,2\n"])
def test_metrics_of_other_columns_are_no_run_without_epochs(tmp_path, content):
    (tmp_path / "metrics.csv").write_text(content)
    with pytest.raises(InputRefused, match=r"metrics\.csv in .* is damaged"):
        read_metrics(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", '{"plan": {}}'])
def test_a_broken_run_json_is_refused(tmp_path, content):
    (tmp_path / "run.json").write_text(content)

    with pytest.raises(InputRefused, match=r"run\.json in .* does not say what was run"):
        read_run(tmp_path)
