"""`sam-train` learns from a folder, resumes as if never stopped, loses nothing, and says what it refuses."""

import csv
import json
import signal
import sys

import pytest
import torch
from safetensors.torch import load_file

from samkit.checkpoints import load_network
from samkit.methods import get_method
from samkit.phantoms import write_phantoms
from samkit.training import cli
from samkit.training.click_module import ClickModule

TINY = ["--preset", "tiny", "--threads", "1", "--set", "spacing=1.5", "--set", "target=each", "--quiet"]


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantoms")
    write_phantoms(str(folder), cases=5, seed=0, size=44, long_share=0.0)
    return folder


@pytest.mark.parametrize("method", ["m-sam", "sam-med3d"])
def test_a_run_leaves_checkpoints_metrics_and_what_was_done(method, phantoms, tmp_path, sam_train):
    out = tmp_path / "run"
    code, stdout, _ = sam_train("--method", method, "--data", phantoms, "--out", out, *TINY)

    assert code == 0
    assert json.loads(stdout)["best"].keys() == {"dice_1", "dice_3", "dice_5", "dice_10"}
    loaded = load_network(out, get_method(method))
    assert loaded.info.config.spacing == (1.5, 1.5, 1.5)
    assert loaded.info.metrics == json.loads(stdout)["best"]
    assert not loaded.info.demonstration
    with (out / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["0", "1"]
    assert all(float(row["loss"]) > 0 and 0 <= float(row["dice_5"]) <= 1 and float(row["seconds"]) > 0 for row in rows)
    facts = json.loads((out / "run.json").read_text())
    assert (facts["state"], facts["data"]["trained_on"], facts["data"]["held_back"]) == ("finished", 4, 1)
    assert str(tmp_path) not in (out / "run.json").read_text() + (out / "best.json").read_text()
    assert facts["data"]["folder"] == phantoms.name
    assert phantoms.name not in (out / "best.json").read_text() + stdout
    assert "--data DATA --out OUT" in loaded.info.provenance["command"]
    assert any((out / "tensorboard").iterdir())


def test_a_killed_run_resumes_to_the_same_weights(phantoms, tmp_path, sam_train, monkeypatch):
    words = ["--method", "m-sam", "--data", phantoms, *TINY, "--set", "epochs=3", "--set", "stage_growth=0.6"]
    assert sam_train(*words, "--out", tmp_path / "whole")[0] == 0
    step = ClickModule.training_step

    def power_cut(self, batch, index):
        if self.trainer.global_step == 3:  # in the middle of the second epoch
            raise RuntimeError("power cut")
        return step(self, batch, index)

    monkeypatch.setattr(ClickModule, "training_step", power_cut)
    monkeypatch.setattr(sys, "argv", ["sam-train", *map(str, words), "--out", str(tmp_path / "killed")])
    with pytest.raises(RuntimeError, match="power cut"):
        cli.main()
    monkeypatch.setattr(ClickModule, "training_step", step)
    assert sam_train(*words, "--out", tmp_path / "killed", "--resume")[0] == 0

    whole, killed = (load_file(tmp_path / name / "last.safetensors") for name in ("whole", "killed"))
    for name in whole:
        torch.testing.assert_close(killed[name], whole[name], rtol=1e-5, atol=1e-7)
    rows = [(tmp_path / name / "metrics.csv").read_text().splitlines() for name in ("whole", "killed")]
    without_seconds = [[[c for n, c in enumerate(row.split(",")) if n != 2] for row in part] for part in rows]
    assert without_seconds[0] == without_seconds[1]


@pytest.fixture
def signals_end():
    """Whoever started the tests may have signals ignored, as nohup has."""
    before = [signal.signal(signal.SIGHUP, signal.SIG_DFL), signal.signal(signal.SIGINT, signal.default_int_handler)]
    yield
    for number, handler in zip((signal.SIGHUP, signal.SIGINT), before, strict=True):
        signal.signal(number, handler)


@pytest.mark.usefixtures("signals_end")
@pytest.mark.parametrize(
    ("number", "step", "advice"),
    [
        (signal.SIGTERM, 3, "whole epochs kept: 1; go on with --resume"),
        (signal.SIGINT, 3, "whole epochs kept: 1; go on with --resume"),
        (signal.SIGHUP, 0, "no epoch was whole yet; start again, in the same --out if you like"),
    ],
)
def test_a_signal_stops_a_run_that_says_so_and_can_go_on(
    number, step, advice, phantoms, tmp_path, sam_train, monkeypatch
):
    out = tmp_path / "run"
    words = ["--method", "m-sam", "--data", phantoms, "--out", out, *TINY]
    train = ClickModule.training_step

    def asked_to_end(self, batch, index):
        if self.trainer.global_step == step:
            signal.raise_signal(number)
        return train(self, batch, index)

    monkeypatch.setattr(ClickModule, "training_step", asked_to_end)
    code, stdout, said = sam_train(*words)

    assert (code, stdout, said) == (128 + number, "", f"sam-train: stopped by {number.name}; {advice}\n")
    assert json.loads((out / "run.json").read_text())["state"] == "stopped"
    assert not list(out.glob(".samkit-*"))
    monkeypatch.setattr(ClickModule, "training_step", train)
    assert sam_train(*words, *(["--resume"] if step else []))[0] == 0
    assert json.loads((out / "run.json").read_text())["state"] == "finished"


@pytest.mark.parametrize("name", ["last.ckpt", "metrics.csv", "run.json"])
def test_a_run_whose_files_are_cut_is_refused_in_a_sentence(name, stopped_run, sam_train):
    out, words = stopped_run
    whole = (out / name).read_bytes()
    (out / name).write_bytes(whole[: len(whole) // 3] + b"\xff\x00,")
    try:
        code, stdout, said = sam_train(*words, "--resume")
    finally:
        (out / name).write_bytes(whole)

    assert (code, stdout) == (3, "")
    assert name in said
    assert "start anew in another --out" in said
    assert "Traceback" not in said
    assert len(said.splitlines()) == 1


@pytest.fixture(scope="module")
def stopped_run(phantoms, tmp_path_factory):
    """The folder of a run of one epoch, and the words that go on with it to two."""
    out = tmp_path_factory.mktemp("runs") / "run"
    words = ["--method", "m-sam", "--data", phantoms, "--out", out, *TINY]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["sam-train", *map(str, words), "--set", "epochs=1"])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    assert not ended.value.code
    return out, words


def test_only_the_same_run_is_resumed_and_at_the_spacing_it_began_with(phantoms, tmp_path, sam_train):
    out = tmp_path / "run"
    words = ["--method", "m-sam", "--data", phantoms, "--out", out, "--preset", "tiny", "--threads", "1", "--quiet"]
    assert sam_train(*words, "--set", "epochs=1")[0] == 0
    facts = (out / "run.json").read_text()
    fewer = tmp_path / "fewer"
    for case in range(4):
        for kind in ("images", "labels"):
            (fewer / kind).mkdir(parents=True, exist_ok=True)
            name = sorted((phantoms / kind).iterdir())[case].name
            (fewer / kind / name).symlink_to(phantoms / kind / name)

    for other, says in (
        (["--set", "spacing=3.5"], "is 3.5,3.5,3.5 now"),
        (["--method", "sam-med3d"], "method was m-sam and is sam-med3d now"),
        (["--data", fewer], "cases was 5 and is 4 now"),
    ):
        code, stdout, stderr = sam_train(*words, *other, "--resume")
        assert (code, stdout) == (3, "")
        assert says in stderr
        assert len(stderr.strip().splitlines()) == 1
        assert (out / "run.json").read_text() == facts

    assert sam_train(*words, "--set", "epochs=2", "--resume")[0] == 0
    resumed = json.loads((out / "run.json").read_text())
    assert resumed["epochs"] == 2
    assert resumed["plan"]["config"]["spacing"] == json.loads(facts)["plan"]["config"]["spacing"]


def test_a_run_that_failed_in_its_first_epoch_is_started_again(phantoms, tmp_path, sam_train, monkeypatch):
    words = ["--method", "m-sam", "--data", phantoms, "--out", tmp_path / "run", *TINY, "--set", "epochs=1"]

    def power_cut(self, batch, index):
        raise RuntimeError("power cut")

    with monkeypatch.context() as broken:
        broken.setattr(ClickModule, "training_step", power_cut)
        broken.setattr(sys, "argv", ["sam-train", *map(str, words)])
        with pytest.raises(RuntimeError, match="power cut"):
            cli.main()

    assert sam_train(*words)[0] == 0
    assert json.loads((tmp_path / "run/run.json").read_text())["state"] == "finished"


def test_a_runs_folder_starts_the_next_and_only_the_tunable_parts_move(phantoms, tmp_path, sam_train):
    base, out = tmp_path / "base", tmp_path / "run"
    assert sam_train("--method", "sam-med3d", "--data", phantoms, "--out", base, *TINY)[0] == 0
    code, _, stderr = sam_train(
        "--method", "m-sam", "--data", phantoms, "--out", out, "--init", base,
        *TINY[:-1], "--set", "learning_rate=0.01",
    )  # fmt: skip

    assert code == 0
    assert "started from base" in stderr
    assert "tunable" in stderr
    before, after = load_file(base / "best.safetensors"), load_file(out / "best.safetensors")
    kept = "image_encoder.blocks.0.mlp.lin1.weight"
    torch.testing.assert_close(after[kept], before[kept])
    moved = "mask_decoder.mask_tokens.weight"
    assert not torch.equal(after[moved], before[moved])


def test_a_time_limit_ends_a_long_training_with_a_checkpoint(phantoms, tmp_path, sam_train):
    out = tmp_path / "run"
    code, stdout, _ = sam_train(
        "--method", "sam-med3d", "--data", phantoms, "--out", out, *TINY, "--set", "epochs=10000",
        "--set", "validate_every=5000", "--time-limit", "0.02",
    )  # fmt: skip

    assert code == 0
    assert json.loads(stdout)["seconds"] < 30
    assert (out / "best.safetensors").is_file()


def test_a_used_folder_is_not_overwritten(phantoms, tmp_path, sam_train):
    out = tmp_path / "run"
    out.mkdir()
    (out / "notes.txt").write_text("mine")

    code, _, stderr = sam_train("--method", "m-sam", "--data", phantoms, "--out", out, *TINY)

    assert code == 3
    assert "is not empty" in stderr
    assert [path.name for path in out.iterdir()] == ["notes.txt"]


def test_resuming_where_no_run_is_tells_so(phantoms, tmp_path, sam_train):
    code, _, stderr = sam_train("--method", "m-sam", "--data", phantoms, "--out", tmp_path, *TINY, "--resume")

    assert code == 3
    assert "holds no last.ckpt to resume" in stderr


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--method", "m-sma"], 2, "Did you mean 'm-sam'"),
        (["--method", "m-sam", "--preset", "paper"], 2, "name it with --init"),
        (["--method", "m-sam", "--set", "epoch=1"], 2, "no such setting"),
        (["--method", "m-sam", "--set", "heads=0"], 2, "heads 0 is not at least 1"),
        (["--method", "m-sam", "--data", "nowhere"], 3, "there is no folder nowhere"),
        (["--method", "m-sam", "--init", "nowhere.pth"], 3, "there is no checkpoint"),
        (["--method", "m-sam", "--label", "77"], 3, "equal to 77"),
        (["--method", "m-sam", "--devices", "0"], 2, "devices"),
    ],
)
def test_what_is_refused_is_one_line_and_an_exit_code(words, code, says, phantoms, tmp_path, sam_train):
    out = tmp_path / "run"
    given = [*([] if "--data" in words else ["--data", phantoms]), "--out", out, *words]

    ended, stdout, stderr = sam_train(*given)

    assert ended == code
    assert says in stderr
    assert len(stderr.strip().splitlines()) == 1
    assert stdout == ""
    assert not out.exists()


def test_a_single_case_is_too_few(tmp_path, sam_train):
    write_phantoms(str(tmp_path / "data"), cases=1, seed=0, size=40, long_share=0.0)

    code, _, stderr = sam_train("--method", "m-sam", "--data", tmp_path / "data", "--out", tmp_path / "run", *TINY)

    assert code == 3
    assert "at least 2 are needed" in stderr
