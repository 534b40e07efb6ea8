"""The throughput study: alternation, errors, the table; both libraries compute the same."""

import dataclasses
import json
import os
import pathlib
import shutil
import sys

import jax
import numpy as np
import pytest

from distill_jax import config as configs
from distill_jax import data, losses, models, parallel
from distill_jax.reports import tables
from distill_jax.tasks.images.parts import prepare
from distill_jax.training import state, step
from experiments import markers
from experiments.throughput import contest, ours, plan, records, report, run

HERE = pathlib.Path(run.__file__).parent

# A contender that trains on nothing: it logs its measurements. At the measurement numbered
# `fails` it ends with an error.
FAKE = """
import sys, time
from experiments.throughput import contest

name, log, platform, fails = sys.argv[1:]
measurements = []

def turn(seconds):
    measurements.append(seconds)
    print("what a library prints", flush=True)
    if len(measurements) == int(fails):
        raise MemoryError("the device is full")
    begin = time.monotonic()
    time.sleep(0.05)
    with open(log, "a") as file:
        file.write(f"{name} {seconds} {begin} {time.monotonic()}\\n")
    return 64

contest.serve(lambda: (turn, {"platform": platform, "device": platform}))
"""


def _fakes(
    monkeypatch, log: pathlib.Path, platforms: dict | None = None, fails: dict | None = None
):
    """Puts fakes in place of all contenders, and PyTorch on the list of what is installed."""

    def command(name, task, folder):
        assert json.loads(task.read_text())["config"]["training.batch_size"] == 32
        platform, failing = (platforms or {}).get(name, "cpu"), (fails or {}).get(name, 0)
        return [sys.executable, "-c", FAKE, name, str(log), platform, str(failing)]

    monkeypatch.setattr(run, "command_of", command)
    monkeypatch.setattr(
        plan, "missing", lambda name: "torchdistill" if name == "torchdistill" else ""
    )


def _run(*arguments: str, out: pathlib.Path) -> int:
    return run.main(["--batch-size=32", f"--out={out}", "--seconds=0.5", *arguments])


def test_turns_alternate_and_never_overlap(monkeypatch, tmp_path, capfd):
    log, out = tmp_path / "log", tmp_path / "out"
    _fakes(monkeypatch, log)
    assert _run("--contenders=torch_eager,ours,torchdistill", "--rounds=3", out=out) == 0
    lines = [line.split() for line in log.read_text().splitlines()]
    warm, measurements = lines[:4], lines[4:]
    assert [line[0] for line in warm] == ["torch_eager"] * 2 + ["ours"] * 2
    assert [line[0] for line in measurements] == ["torch_eager", "ours"] * 3
    assert {line[1] for line in measurements} == {"0.5"}
    ends = [float(line[3]) for line in lines]
    begins = [float(line[2]) for line in lines]
    assert all(end <= begin for end, begin in zip(ends[:-1], begins[1:], strict=True))

    (path,) = (out / "results").iterdir()
    assert path.name.startswith("resnet56-resnet20-batch32-random-")
    record = json.loads(path.read_text())
    assert list(record["contenders"]) == ["ours", "torch_eager", "torchdistill"]
    assert record["contenders"]["torchdistill"] == {"left_out": "torchdistill is not installed"}
    for name in ("ours", "torch_eager"):
        values = record["contenders"][name]
        assert len(values["rounds"]) == 3 and values["warm_up_s"] > 0
        assert values["min"] <= values["median"] <= values["max"]
        assert 64 / 0.5 < values["median"] <= 64 / 0.05  # images over the seconds that they took
    assert record["contenders"]["torch_eager"]["ratio"] == 1
    assert record["versions"]["jax"] == jax.__version__ and record["device"].endswith("cores")
    assert record["git_revision"] is None or len(record["git_revision"].split()[0]) == 40
    assert str(tmp_path) not in record["command"] and "--rounds=3" in record["command"]
    printed = capfd.readouterr().out
    assert "[3/3] ours: " in printed and "what a library prints" not in printed
    assert tables.text(report.table(record)) in printed
    assert tables.markdown(report.table(record)) in (out / "README.md").read_text()


def test_a_contender_that_fails_is_left_out_and_the_others_go_on(monkeypatch, tmp_path, capfd):
    log, out = tmp_path / "log", tmp_path / "out"
    _fakes(monkeypatch, log, fails={"ours": 4, "torch_compile": 1})
    chosen = "--contenders=ours,torch_eager,torch_compile"
    assert _run(chosen, "--rounds=3", out=out) == 1
    (path,) = (out / "results").iterdir()
    found = json.loads(path.read_text())["contenders"]
    why = "ended with exit code 1: MemoryError: the device is full"
    assert found["ours"] == found["torch_compile"] == {"left_out": why}
    assert len(found["torch_eager"]["rounds"]) == 3
    assert f"torch_compile: {why}" in capfd.readouterr().out


def test_devices_of_two_kinds_are_not_compared(monkeypatch, tmp_path, capfd):
    _fakes(monkeypatch, tmp_path / "log", platforms={"torch_eager": "gpu"})
    assert _run("--contenders=ours,torch_eager", out=tmp_path / "out") == 2
    error = capfd.readouterr().err
    assert "ours computes on the CPU, torch_eager on a GPU" in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fast"], "--fast: unknown argument"),
        (["--seconds=0"], "--seconds=0: expected a number > 0"),
        (["--seconds=soon"], "--seconds: invalid float value: 'soon'"),
        (["--rounds=0"], "--rounds=0: expected an integer >= 1"),
        (["--batch-size=-1"], "--batch-size=-1: expected an integer >= 1"),
        (["--workers=-1"], "--workers=-1: expected an integer >= 0"),
        (["--store-images=99"], "--store-images=99: expected an integer >= 100"),
        (["--pair=resnet20"], "--pair=resnet20: expected TEACHER,STUDENT"),
        (["--pair=resnet56,resnet21"], "--pair='resnet21': unknown model; did you mean"),
        (["--pair=vgg13,vgg8"], "unknown model of the contenders that use PyTorch"),
        (["--contenders=ours,torch"], "--contenders='torch': unknown contender"),
        (["--data=nowhere"], "--data=nowhere: no such folder"),
        (["--publish", "--out=x"], "--out=x: expected either --out or --publish"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(
    tmp_path, capsys, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    assert run.main(arguments, home=tmp_path / "home") == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and error.startswith("throughput: error: ")
    assert list(tmp_path.iterdir()) == []


def test_a_pair_of_ours_alone_may_be_any(monkeypatch, tmp_path):
    _fakes(monkeypatch, tmp_path / "log")
    assert _run("--pair=vgg13,vgg8", "--contenders=ours", "--rounds=1", out=tmp_path / "out") == 0
    (path,) = (tmp_path / "out" / "results").iterdir()
    assert json.loads(path.read_text())["contenders"]["ours"]["ratio"] is None


def test_what_is_not_installed_is_named(monkeypatch):
    assert plan.missing("ours") == ""
    monkeypatch.setattr(plan, "find_spec", lambda name: None if name == "torchvision" else name)
    assert plan.missing("torch_eager") == "torchvision"


def test_ratios_are_taken_round_by_round():
    found = records.summary([10.0, 40.0, 30.0], [10.0, 20.0, 10.0])
    assert found == {
        "rounds": [10.0, 40.0, 30.0],
        "median": 30.0,
        "min": 10.0,
        "max": 40.0,
        "ratio": 2.0,
    }
    assert records.summary([1.0], None)["ratio"] is None


def test_the_readme_says_what_the_results_say(tmp_path):
    shutil.copy(HERE / "README.md", tmp_path)
    if (HERE / "results").exists():
        shutil.copytree(HERE / "results", tmp_path / "results")
    assert report.write_readme(tmp_path).read_text() == (HERE / "README.md").read_text()


def test_the_prose_around_the_table_stays(tmp_path, capsys):
    (tmp_path / "README.md").write_text(f"Before\n{markers.BEGIN}\nold\n{markers.END}\nAfter\n")
    assert run.main(["--report-only"], home=tmp_path) == 0
    text = (tmp_path / "README.md").read_text()
    assert text == f"Before\n{markers.BEGIN}\n{report.NOTHING}{markers.END}\nAfter\n"
    (tmp_path / "README.md").write_text("no markers")
    assert run.main(["--report-only"], home=tmp_path) == 2
    assert "expected the markers" in capsys.readouterr().err


@pytest.fixture
def task(tmp_path) -> dict:
    """What contenders of a small pair are given, as it arrives: through JSON."""
    made = plan.task_of(
        ("resnet8", "resnet8"), tmp_path, source="random", batch_size=16, few=100, workers=0
    )
    return json.loads(json.dumps(made))


def test_ours_is_the_recipe_of_the_literature(task, tmp_path):
    """Nothing of the published recipe is left out for the sake of speed."""
    recipe = configs.flatten(configs.load(f"{plan.ROOT}/configs/cifar100.py:resnet8,resnet8,kd"))
    changed = {
        "data.name", "data.path", "data.validation", "teacher.path", "teacher.look_ahead",
        "training.steps", "training.batch_size", "evaluation.every_epochs",
        "checkpoint.every_epochs", "logging.progress", "mesh.data",
    }  # fmt: skip
    ahead = {}
    for name in ours.CHANGES:
        config = configs.flatten(configs.resolve(ours.config_of(name, task, tmp_path)))
        ahead[name] = config["teacher.look_ahead"]
        differ = {key for key in config if config[key] != recipe[key]}
        assert differ <= changed | set(ours.CHANGES[name])
        train = data.load("npz", "train", path=config["data.path"])
        assert len(train) == (100 if name == "ours_stored" else plan.RANDOM_IMAGES)
        assert train.info.num_classes == 100 and train.info.image_shape == (32, 32, 3)
    assert {name for name, steps in ahead.items() if steps != 1} == {"ours_ahead"}


@pytest.mark.slow
def test_a_turn_of_ours_trains_whole_steps_and_goes_on_where_it_was(task, tmp_path):
    turn, about = ours.prepare("ours", task, tmp_path)
    assert about["platform"] == "cpu" and about["steps_per_call"] == 1
    before = turn(0.0)
    done = [turn(0.05) for _ in range(2)]
    assert before == 0 and all(images > 0 and images % 16 == 0 for images in done)


@pytest.mark.slow
def test_ours_run_in_processes_of_their_own(tmp_path, capfd):
    arguments = ["--pair=resnet8,resnet8", "--store-images=100", "--seconds=0.2", "--rounds=2"]
    assert run.main([*arguments, "--contenders=ours+huge,ours_stored", f"--out={tmp_path}"]) == 0
    (path,) = (tmp_path / "results").iterdir()
    found = json.loads(path.read_text())["contenders"]
    assert found["ours_stored"]["store"]["views"] == 162
    assert all(len(one["rounds"]) == 2 and one["min"] > 0 for one in found.values())


# --- With PyTorch: both sides compute the same. ---


@pytest.fixture
def peers():
    pytest.importorskip("torch", reason="PyTorch is not installed; pip install '.[bench]'")
    pytest.importorskip("torchvision", reason="torchvision is not installed")
    from experiments.throughput import peers

    return peers


def _spec(name: str, task_config: dict) -> models.Spec:
    mean, std = (tuple(task_config[f"data.{key}"]) for key in ("mean", "std"))
    return models.Spec(name, models.check_options(name, {}), (32, 32, 3), 100, mean, std)


def _arrays(network) -> dict[str, np.ndarray]:
    return {name: value.detach().numpy().copy() for name, value in network.state_dict().items()}


def _network(peers, name: str, seed: int):
    """A network of PyTorch whose batch statistics are not the initial ones."""
    import torch

    torch.manual_seed(seed)
    network = peers.ResNet(name)
    with torch.no_grad():
        network.train()(torch.randn(32, 3, 32, 32))
    return network.eval()


@pytest.mark.parametrize("name", ["resnet20", "resnet8x4"])
def test_the_networks_answer_alike(peers, task, name):
    import torch

    network, spec = _network(peers, name, 0), _spec(name, task["config"])
    params, stats = models.from_pytorch(_arrays(network), spec)
    images = np.random.default_rng(1).normal(size=(4, 32, 32, 3)).astype(np.float32)
    module = models.abstract(name, input_shape=(32, 32, 3), num_classes=100)
    answer = models.apply(models.split(module)[0], params, stats, images)[0].logits
    with torch.no_grad():
        expected = network(torch.tensor(images).permute(0, 3, 1, 2)).numpy()
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(answer, expected, atol=1e-4)


def test_the_losses_are_one(peers):
    import torch

    draw = np.random.default_rng(2)
    student, teacher = (3 * draw.normal(size=(64, 100)).astype(np.float32) for _ in range(2))
    labels = draw.integers(0, 100, 64)
    weights = {"temperature": 4.0, "hard_weight": 0.1, "soft_weight": 0.9}
    expected = peers.kd_loss(*map(torch.tensor, (student, teacher, labels)), **weights).item()
    hard = losses.mean(losses.cross_entropy(student, jax.nn.one_hot(labels, 100)))
    soft = losses.mean(losses.soft_target(student, teacher, temperature=4.0))
    assert float(0.1 * hard + 0.9 * soft) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("kind", ["torch_eager", "torchdistill"])
def test_two_steps_end_in_the_same_network(peers, task, tmp_path, kind):
    """Loss, gradient, weight decay, momentum and batch statistics; the view is the image itself."""
    import torch

    if kind == "torchdistill":
        pytest.importorskip("torchdistill", reason="torchdistill is not installed")
    teacher, student = (_network(peers, "resnet8", seed) for seed in (3, 4))
    spec = _spec("resnet8", task["config"])
    models.save(tmp_path / "teacher", spec, *models.from_pytorch(_arrays(teacher), spec))

    flat = configs.flatten(ours.config_of("ours", task, tmp_path))
    flat |= {"data.augment.crop_padding": 0, "data.augment.flip": False}
    parts = prepare(configs.resolve(configs.unflatten(flat)))
    params, stats = models.from_pytorch(_arrays(student), spec)
    initial = jax.device_get(dataclasses.replace(parts.initial, params=params, stats=stats))
    whole = parallel.replicated(parts.mesh)
    now = state.copy_to(initial, whole)
    batches = [{"id": np.arange(16 * n, 16 * n + 16, dtype=np.int32)} for n in range(2)]
    compiled = step.compile_steps(parts.recipe, parts.mesh)
    for batch in batches:
        placed = step.put_batches([batch], parts.mesh)
        now = compiled(now, parts.frozen, parts.resident, placed)

    config, device = task["config"], torch.device("cpu")
    trainer = peers.Trainer(peers.KINDS[kind], teacher, student, config, device)
    images, labels = parts.feed.examples.arrays()
    mean, std = (np.asarray(config[f"data.{key}"], np.float32) for key in ("mean", "std"))
    values = []
    for batch in batches:
        pixels = (images[batch["id"]] / np.float32(255) - mean) / std
        tensor = torch.tensor(pixels.astype(np.float32)).permute(0, 3, 1, 2)
        values.append(trainer.step(tensor, torch.tensor(labels[batch["id"]]).long()))
    assert float(now.sums["loss"]) == pytest.approx(sum(loss for loss, _ in values), abs=2e-4)
    assert float(now.sums["accuracy"]) == pytest.approx(sum(hit for _, hit in values), abs=1e-6)
    expected_params, expected_stats = models.from_pytorch(_arrays(student), spec)
    for expected, found in ((expected_params, now.params), (expected_stats, now.stats)):
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, atol=2e-4, rtol=1e-3, err_msg=name)


def test_the_loader_shows_what_the_recipe_says(peers, task):
    """Crops of 4 pixels of black and mirrored images, normalised as ours; endless."""
    import torch

    config = task["config"]
    pictures = peers.Pictures(task["data"], config["data.mean"], config["data.std"])
    torch.manual_seed(0)
    seen = [pictures[7] for _ in range(20)]
    mean, std = (np.asarray(config[f"data.{key}"]) for key in ("mean", "std"))
    pixels = np.stack([image.numpy().transpose(1, 2, 0) * std + mean for image, _ in seen]) * 255
    images, labels = data.load("npz", "train", path=task["data"]).arrays()
    assert {label for _, label in seen} == {int(labels[7])}
    padded = np.pad(images[7].astype(float), ((4, 4), (4, 4), (0, 0)))
    views = np.stack(
        [
            padded[y : y + 32, x : x + 32][:, :: -1 if flip else 1]
            for y in range(9)
            for x in range(9)
            for flip in (False, True)
        ]
    )
    distance = np.abs(pixels[:, None] - views[None]).max(axis=(2, 3, 4))
    assert (distance.min(axis=1) < 0.01).all() and len(set(distance.argmin(axis=1))) > 10
    ids = iter(peers.Endless(5))
    assert [sorted(next(ids) for _ in range(5)) for _ in range(3)] == [list(range(5))] * 3


def test_a_turn_of_pytorch_trains_whole_batches(peers, task):
    turn, about = peers.prepare("torch_eager", task)
    assert about["threads"] >= 1
    images = turn(0.2)
    assert images > 0 and images % 16 == 0


def test_this_machine_can_say_how_busy_it_is():
    assert 0 <= contest.busy(0.1) <= 1
    assert os.path.exists("/proc/stat") or contest.busy(0.1) == 0
