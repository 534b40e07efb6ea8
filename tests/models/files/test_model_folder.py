"""A network on disk: exact round trips, atomic replacement, and every kind of damage refused."""

import hashlib
import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from distill_jax import models
from distill_jax.errors import UsageError
from distill_jax.models.files import model_folder

SPEC = models.Spec(
    name="cnn",
    options={"channels": [3], "dense": 4, "dropout": 0.25},
    input_shape=(4, 4, 1),
    num_classes=3,
    mean=(0.1307,),
    std=(0.3081,),
)


def arrays(spec=SPEC, seed=0):
    module = models.create(
        spec.name,
        input_shape=spec.input_shape,
        num_classes=spec.num_classes,
        seed=seed,
        **spec.options,
    )
    return models.split(module)[1:]


def same(saved, params, stats):
    for mine, theirs in ((saved.params, params), (saved.stats, stats)):
        assert list(mine) == list(theirs)
        for name, value in theirs.items():
            assert isinstance(mine[name], jax.Array) and mine[name].dtype == value.dtype
            assert np.asarray(mine[name]).tobytes() == np.asarray(value).tobytes()


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "run" / "model"
    models.save(path, SPEC, *arrays())
    return path


def test_a_saved_network_comes_back_bit_for_bit(tmp_path):
    params, stats = arrays()
    params["classifier/bias"] = jnp.array([jnp.nan, -0.0, 1e-42], jnp.float32)
    fingerprint = models.save(tmp_path / "deep" / "teacher", SPEC, params, stats)
    saved = models.load(tmp_path / "deep" / "teacher")
    assert saved.spec == SPEC
    same(saved, params, stats)
    assert saved.fingerprint == fingerprint == models.fingerprint(SPEC, params, stats)
    assert sorted(os.listdir(tmp_path / "deep")) == ["teacher"]
    assert sorted(os.listdir(tmp_path / "deep" / "teacher")) == [
        "model.json",
        "weights.safetensors",
    ]
    content = json.loads((tmp_path / "deep" / "teacher" / "model.json").read_text())
    assert content["fingerprint"] == fingerprint


def test_a_loaded_network_answers_as_the_saved_one(folder):
    saved = models.load(folder)
    spec = saved.spec
    module = models.abstract(
        spec.name, input_shape=spec.input_shape, num_classes=spec.num_classes, **spec.options
    )
    graphdef = models.split(module)[0]
    x = jnp.ones((2, 4, 4, 1))
    expected, _ = models.apply(graphdef, *arrays(), x)
    answer, _ = models.apply(graphdef, saved.params, saved.stats, x)
    np.testing.assert_array_equal(answer.logits, expected.logits)


def test_a_workdir_stands_for_its_model(folder):
    assert models.load(folder.parent).fingerprint == models.load(str(folder)).fingerprint


def test_the_fingerprint_covers_spec_names_and_bits():
    params, stats = arrays()
    first = models.fingerprint(SPEC, params, stats)
    assert first == models.fingerprint(
        models.Spec.from_json(SPEC.to_json()), dict(reversed(params.items())), stats
    )
    renamed = {name.replace("dense", "dance"): value for name, value in params.items()}
    nudged = {**params, "dense/bias": params["dense/bias"].at[0].set(1e-30)}
    reshaped = {**params, "dense/bias": params["dense/bias"].reshape(2, 2)}
    other_spec = models.Spec.from_json({**SPEC.to_json(), "mean": [0.1308]})
    others = {
        models.fingerprint(SPEC, renamed, stats),
        models.fingerprint(SPEC, nudged, stats),
        models.fingerprint(SPEC, reshaped, stats),
        models.fingerprint(SPEC, {**params, **stats}, {}),
        models.fingerprint(other_spec, params, stats),
    }
    assert len(others | {first}) == 6


def flip(name, position, bit):
    def damage(folder):
        content = bytearray((folder / name).read_bytes())
        content[int(position * (len(content) - 1))] ^= 1 << bit
        (folder / name).write_bytes(content)

    return damage


def cut(name, length):
    return lambda folder: os.truncate(folder / name, int(length * (folder / name).stat().st_size))


def edit(change):
    def damage(folder):
        content = json.loads((folder / "model.json").read_text())
        change(content)
        (folder / "model.json").write_text(json.dumps(content, indent=2) + "\n")

    return damage


def append(name, extra):
    def damage(folder):
        with open(folder / name, "ab") as file:
            file.write(extra)

    return damage


BOTH = ("model.json", "weights.safetensors")
DAMAGES = {
    **{
        f"flip {name} {position:.2f} {bit}": flip(name, position, bit)
        for name in BOTH
        for position in np.linspace(0, 1, 23)
        for bit in (0, 5)
    },
    **{f"cut {name} {part}": cut(name, part) for name in BOTH for part in (0, 0.01, 0.5, 0.999)},
    **{f"delete {name}": (lambda folder, name=name: (folder / name).unlink()) for name in BOTH},
    **{f"append to {name}": append(name, b" ") for name in BOTH},
    "empty folder": lambda folder: [(folder / name).unlink() for name in BOTH],
    "no folder": shutil.rmtree,
    "a file": lambda folder: (shutil.rmtree(folder), folder.write_text("x")),
    "a folder in place of the weights": lambda folder: (
        (folder / "weights.safetensors").unlink(),
        (folder / "weights.safetensors").mkdir(),
    ),
    "other mean": edit(lambda content: content["spec"].update(mean=[0.2])),
    "other option": edit(lambda content: content["spec"]["options"].update(dropout=0.5)),
    "other model": edit(lambda content: content["spec"].update(name="mlp", options={})),
    "unknown model": edit(lambda content: content["spec"].update(name="os.system")),
    "missing field": edit(lambda content: content["spec"].pop("std")),
    "another field": edit(lambda content: content["spec"].update(more=1)),
    "zero std": edit(lambda content: content["spec"].update(std=[0.0])),
    "a word as shape": edit(lambda content: content["spec"].update(input_shape="448")),
    "later format": edit(lambda content: content.update(format=2)),
    "no fingerprint": edit(lambda content: content.pop("fingerprint")),
    "other fingerprint": edit(lambda content: content.update(fingerprint="0" * 64)),
    "a list": lambda folder: (folder / "model.json").write_text("[1]"),
    "not text": lambda folder: (folder / "model.json").write_bytes(b"\xff\xfe"),
    "deep nesting": lambda folder: (folder / "model.json").write_text("[" * 100_000),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_every_damage_is_refused_in_one_line(folder, damage):
    damage(folder)
    with pytest.raises(UsageError) as error:
        models.load(folder)
    assert str(error.value).startswith(f"teacher.path={str(folder)!r}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("delete model.json", "model.json cannot be read: No such file"),
        ("delete weights.safetensors", "weights.safetensors cannot be read: No such file"),
        ("cut weights.safetensors 0.5", "weights.safetensors is damaged or truncated"),
        ("cut model.json 0.5", "model.json is damaged or truncated"),
        ("empty folder", "expected a folder with model.json, or the workdir of a run"),
        ("no folder", "no such folder; expected a saved model"),
        ("later format", "model.json has format 2; this version reads 1"),
        ("other mean", "its fingerprint is not that of this model"),
    ],
)
def test_the_message_says_what_is_wrong(folder, damage, words):
    DAMAGES[damage](folder)
    with pytest.raises(UsageError, match=words) as error:
        models.load(folder, key="student.start")
    assert str(error.value).startswith("student.start=")


def test_weights_of_another_model_are_refused(folder, tmp_path):
    models.save(tmp_path / "other", SPEC, *arrays(seed=1))
    shutil.copy(tmp_path / "other" / "weights.safetensors", folder)
    with pytest.raises(UsageError, match="its SHA-256 is not the one in model.json"):
        models.load(folder)


def write_unchecked(folder, spec, params, stats):
    """What a `save` of another version could have written: consistent, yet not what we make."""
    arrays = {
        name: np.asarray(value) for name, value in model_folder._grouped(params, stats).items()
    }
    weights = safetensors.numpy.save(arrays)
    fingerprint = models.fingerprint(spec, params, stats)
    (folder / "weights.safetensors").write_bytes(weights)
    (folder / "model.json").write_bytes(
        model_folder._render(spec, fingerprint, hashlib.sha256(weights).hexdigest())
    )


def test_arrays_that_do_not_fit_the_spec_are_named(folder):
    params, stats = arrays()
    params["classifier/extra"] = params.pop("classifier/bias")
    params["dense/bias"] = jnp.zeros(5)
    stats = {name: np.float64(value) for name, value in stats.items()}
    write_unchecked(folder, SPEC, params, stats)
    with pytest.raises(UsageError) as error:
        models.load(folder)
    assert str(error.value).endswith(
        "weights.safetensors does not fit cnn: classifier/bias is missing; classifier/extra is "
        "unexpected; dense/bias is float32 [5], not float32 [4]; and 2 more"
    )
    with pytest.raises(ValueError, match="not the arrays of cnn: classifier/bias is missing"):
        models.save(folder, SPEC, params, stats)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "resnet9"}, "this version has no such model: student.name='resnet9'"),
        ({"options": {"width": 3}}, "this version has no such model: student.width=3"),
    ],
)
def test_a_model_of_another_version_is_refused(folder, change, words):
    spec = models.Spec.from_json({**SPEC.to_json(), **change})
    write_unchecked(folder, spec, *arrays())
    with pytest.raises(UsageError, match=words):
        models.load(folder)


def test_saving_replaces_the_earlier_model_and_leaves_nothing_behind(folder):
    models.save(folder, SPEC, *arrays(seed=1))
    same(models.load(folder), *arrays(seed=1))
    assert os.listdir(folder.parent) == ["model"]


def test_saving_never_deletes_what_is_not_a_model(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="found 'thesis.tex', which replacing it would delete"):
        models.save(tmp_path, SPEC, *arrays())
    with pytest.raises(UsageError, match="found 'thesis.tex'"):
        models.save(tmp_path / "thesis.tex", SPEC, *arrays())
    assert os.listdir(tmp_path) == ["thesis.tex"]
    (tmp_path / "empty").mkdir()
    models.save(tmp_path / "empty", SPEC, *arrays())
    same(models.load(tmp_path / "empty"), *arrays())


class Killed(BaseException):
    """Ends a save as SIGKILL would: nothing that follows is executed."""


@pytest.fixture
def kill(monkeypatch):
    """kill(n, save): runs `save` up to its n-th change of the file system; whether it finished."""

    def run(last, save):
        changes = 0

        def deadly(function):
            def call(*arguments, **named):
                nonlocal changes
                changes += 1
                if changes == last:
                    raise Killed
                return function(*arguments, **named)

            return call

        with monkeypatch.context() as patch:
            for name in ("open", "rename", "unlink", "rmdir", "mkdir"):
                patch.setattr(
                    model_folder.pathlib.Path,
                    name,
                    deadly(getattr(model_folder.pathlib.Path, name)),
                )
            patch.setattr(model_folder.os, "fsync", deadly(os.fsync))
            try:
                save()
            except Killed:
                return False
        return True

    return run


@pytest.mark.parametrize("last", range(1, 15))
def test_a_kill_at_any_moment_leaves_one_whole_model(folder, kill, last):
    known = {models.fingerprint(SPEC, *arrays(seed=seed)): seed for seed in (0, 1)}
    finished = kill(last, lambda: models.save(folder, SPEC, *arrays(seed=1)))
    assert finished == (last == 14)  # A save makes thirteen changes; each is the last once.
    assert {known[models.load(path).fingerprint] for path in (folder, folder.parent)} <= {0, 1}
    for again in (2, 5, 8):
        assert not kill(again, lambda: models.save(folder, SPEC, *arrays(seed=1)))
        assert models.load(folder).fingerprint in known
    models.save(folder, SPEC, *arrays(seed=2))
    same(models.load(folder), *arrays(seed=2))
    assert os.listdir(folder.parent) == ["model"]


@pytest.mark.parametrize("moment", ["before the weights", "before both"])
def test_a_reader_that_meets_a_replacement_reads_again(folder, monkeypatch, moment):
    read_bytes = model_folder.pathlib.Path.read_bytes
    pending = [1]

    def replaced_meanwhile(path):
        if pending and (moment == "before both" or path.name == "weights.safetensors"):
            models.save(folder, SPEC, *arrays(seed=pending.pop()))
        return read_bytes(path)

    monkeypatch.setattr(model_folder.pathlib.Path, "read_bytes", replaced_meanwhile)
    same(models.load(folder), *arrays(seed=1))
    assert not pending
