"""Writing a store: what it holds to the byte, kills, full disks, damage, and what is refused."""

import errno
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from distill_jax import data, models, parallel, storage
from distill_jax.data.images.sources import ArrayExamples
from distill_jax.errors import UsageError
from distill_jax.storage import sharded
from distill_jax.teachers.answers import computing, images, store, stored_teacher
from distill_jax.teachers.answers import manifest as manifests

ROOT = pathlib.Path(__file__).resolve().parents[3]
AUGMENT = data.Augment(crop_padding=1, flip=True)


def some(split: str, count: int) -> ArrayExamples:
    examples = data.load("digits", split)
    return ArrayExamples(examples.info, *(a[:count] for a in examples.arrays()))


def network(folder: pathlib.Path, seed: int = 0, scale: float = 1.0) -> models.Saved:
    """A network with the initial values of a seed; `scale` multiplies its logits."""
    spec = models.Spec("mlp", {"widths": (12,)}, (8, 8, 1), 10, (0.3,), (0.4,))
    module = models.create("mlp", input_shape=(8, 8, 1), num_classes=10, seed=seed, widths=(12,))
    _, params, stats = models.split(module)
    params = {
        name: value * scale if name.startswith("classifier") else value
        for name, value in params.items()
    }
    models.save(folder, spec, params, stats)
    return models.load(folder)


def arguments(folder: pathlib.Path, **changes) -> dict:
    """What `precompute` takes, for 20 images in three parts of 8, 8 and 4."""
    return {
        "saved": network(folder / "network"),
        "train": some("train", 20),
        "test": some("test", 6),
        "augment": AUGMENT,
        "batch_size": 64,
        "part_size": 8,
        "mesh": parallel.make_mesh(data=1),
        "note": lambda line: None,
    } | changes


def precompute(folder: pathlib.Path, *, part_size: int, note, **computation) -> None:
    images.precompute_views(
        folder, computing.AnswerComputation(**computation), part_size=part_size, note=note
    )


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def opened(folder: pathlib.Path, verify: bool | None = None) -> stored_teacher.StoredTeacher:
    required = stored_teacher.ImageRequirements(
        train_fingerprint=data.fingerprint(some("train", 20)),
        test_fingerprint=data.fingerprint(some("test", 6)),
        augment=AUGMENT,
        num_classes=10,
    )
    return stored_teacher.open_image_store(folder, required, verify=verify)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> pathlib.Path:
    """A finished store; tests change copies of it."""
    folder = tmp_path_factory.mktemp("whole")
    precompute(folder / "store", **arguments(folder))
    return folder / "store"


@pytest.fixture
def copy(whole, tmp_path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(whole, tmp_path / "store"))


def test_the_files_of_a_store_are_what_the_manifest_says(whole):
    manifest = json.loads((whole / "manifest.json").read_text())
    assert list(manifest["parts"]) == ["test", "00000", "00001", "00002"]
    places = [(part.get("first"), part.get("count")) for part in manifest["parts"].values()]
    assert places == [(None, None), (0, 8), (8, 8), (16, 4)]
    listed = {name: f for part in manifest["parts"].values() for name, f in part["files"].items()}
    assert {path.name for path in whole.iterdir()} == {"manifest.json", *listed}
    shapes = {
        "logits-00000.npy": ((8, 18, 10), np.float16),
        "pooled-00000.npy": ((8, 18, 12), np.float16),
        "logits-00002.npy": ((4, 18, 10), np.float16),
        "test-logits.npy": ((6, 10), np.float32),
        "test-pooled.npy": ((6, 12), np.float32),
    }
    for name, (shape, dtype) in shapes.items():
        array = np.load(whole / name)
        assert (array.shape, array.dtype) == (shape, dtype)
    for name, entry in listed.items():
        assert (whole / name).stat().st_size == entry["bytes"]
    assert manifest["answer_bytes"] == 20 * 18 * (10 + 12) * 2
    assert manifest["teacher"]["parameters"] == 64 * 12 + 12 + 12 * 10 + 10


def test_a_part_that_has_room_for_more_images_than_there_are_takes_no_memory_for_them(
    whole, tmp_path
):
    precompute(tmp_path / "store", **arguments(tmp_path, part_size=10**12))
    parts = [np.load(whole / f"logits-0000{part}.npy") for part in range(3)]
    found = np.load(tmp_path / "store" / "logits-00000.npy")
    np.testing.assert_allclose(found, np.concatenate(parts), atol=2e-3)  # float16
    opened(tmp_path / "store")


def test_a_writer_that_was_stopped_goes_on_where_it_stopped(whole, tmp_path):
    class Stop(Exception):
        pass

    lines = []

    def note(line):
        lines.append(line)
        if len(lines) == 2:
            raise Stop

    with pytest.raises(Stop):
        precompute(tmp_path / "store", **arguments(tmp_path, note=note))
    assert lines[-1].endswith("part 00000 is written, 2 of 4")
    with pytest.raises(UsageError, match="2 of 4 parts are missing; .* goes on where it stopped"):
        opened(tmp_path / "store")
    kept = (tmp_path / "store" / "logits-00000.npy").stat().st_ino
    lines.clear()
    # Without a part size it goes on with that of the store.
    precompute(tmp_path / "store", **arguments(tmp_path, part_size=0, note=lines.append))
    assert [line.rsplit(": ")[-1] for line in lines] == [
        "part 00001 is written, 3 of 4",
        "part 00002 is written, 4 of 4",
    ]
    assert (tmp_path / "store" / "logits-00000.npy").stat().st_ino == kept
    assert contents(tmp_path / "store") == contents(whole)
    lines.clear()
    precompute(tmp_path / "store", **arguments(tmp_path, note=lines.append))
    assert len(lines) == 1 and lines[0].endswith("finished; all 4 parts are intact")
    assert contents(tmp_path / "store") == contents(whole)


KILLED = """
import os, pathlib, signal, sys
import test_store

replace = os.replace

def replace_or_die(source, target):
    if pathlib.Path(target).name == sys.argv[2]:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)

folder = pathlib.Path(sys.argv[1])
given = test_store.arguments(folder)
os.replace = replace_or_die
test_store.precompute(folder / "store", **given)
"""


@pytest.mark.slow
def test_a_writer_that_was_killed_leaves_whole_parts(whole, tmp_path):
    file = "pooled-00001.npy"
    paths = os.pathsep.join(
        [str(ROOT), str(ROOT / "tests" / "support"), str(pathlib.Path(__file__).parent)]
    )
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), file],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    left = contents(tmp_path / "store")
    assert any(name.startswith(f".{file}.") for name in left)
    for name, content in left.items():
        assert name.startswith(".") or name == "manifest.json" or content == contents(whole)[name]
    precompute(tmp_path / "store", **arguments(tmp_path))
    assert contents(tmp_path / "store") == contents(whole)


def test_a_changed_byte_of_the_manifest_is_noticed(copy):
    path = copy / "manifest.json"
    content = path.read_bytes()
    for position in range(0, len(content), 3):
        flipped = bytearray(content)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(flipped)
        with pytest.raises(UsageError, match="manifest.json is damaged|it has format"):
            manifests.read_manifest(copy)
    for length in range(0, len(content), 97):
        path.write_bytes(content[:length])
        with pytest.raises(UsageError, match="manifest.json is damaged"):
            manifests.read_manifest(copy)
    path.write_bytes(content + b"\n")
    with pytest.raises(UsageError, match="manifest.json is damaged"):
        opened(copy)
    path.unlink()
    with pytest.raises(UsageError, match=r"teacher.store=.*manifest.json: No such file"):
        opened(copy)


def test_a_manifest_of_a_later_format_is_refused(copy):
    manifest = manifests.read_manifest(copy)
    (copy / "manifest.json").write_bytes(manifests.render({**manifest, "format": 2}))
    with pytest.raises(UsageError, match="it has format 2; this version reads 1"):
        opened(copy)


FILES = ["test-logits.npy", "logits-00001.npy", "pooled-00002.npy"]


@pytest.mark.parametrize("file", FILES)
def test_a_changed_byte_of_a_file_is_noticed_and_repaired(copy, whole, tmp_path, file):
    path = copy / file
    content = path.read_bytes()
    files = {file: _entry(copy, file)}
    for position in range(0, len(content), 1 if len(content) < 1000 else 37):
        flipped = bytearray(content)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(flipped)
        assert file in sharded.find_damage(copy, files, hashes=True)
    with pytest.raises(UsageError, match=rf"teacher.store=.*{file} is damaged: its SHA-256"):
        opened(copy)
    lines = []
    precompute(copy, **arguments(tmp_path, note=lines.append))
    assert f"{file} is damaged" in lines[0] and len(lines) == 2
    assert contents(copy) == contents(whole)


def _entry(folder: pathlib.Path, file: str) -> dict:
    parts = manifests.read_manifest(folder)["parts"].values()
    return next(part["files"][file] for part in parts if file in part["files"])


@pytest.mark.parametrize("verify", [None, False])
@pytest.mark.parametrize("file", FILES)
def test_a_file_that_is_cut_or_gone_is_noticed_and_repaired(copy, whole, tmp_path, file, verify):
    content = (copy / file).read_bytes()
    for fault in (content[:-1], content + b"\0", b""):
        (copy / file).write_bytes(fault)
        with pytest.raises(UsageError, match=f"{file} is damaged: it has not the size"):
            opened(copy, verify=verify)
    (copy / file).unlink()
    with pytest.raises(UsageError, match=f"{file} is missing; storing the answers again repairs"):
        opened(copy, verify=verify)
    (copy / file).mkdir()
    with pytest.raises(UsageError, match=file):
        opened(copy, verify=verify)
    (copy / file).rmdir()
    precompute(copy, **arguments(tmp_path))
    assert contents(copy) == contents(whole)


def test_two_parts_that_were_exchanged_are_noticed(copy):
    (copy / "logits-00000.npy").rename(copy / "other")
    (copy / "logits-00001.npy").rename(copy / "logits-00000.npy")
    (copy / "other").rename(copy / "logits-00001.npy")
    with pytest.raises(UsageError, match="logits-00000.npy is damaged"):
        opened(copy)


def test_a_large_store_is_verified_part_by_part_as_it_is_used(copy, monkeypatch):
    monkeypatch.setattr(store, "VERIFY_BYTES", 1000)
    content = bytearray((copy / "logits-00001.npy").read_bytes())
    content[-1] ^= 1
    (copy / "logits-00001.npy").write_bytes(content)
    teacher = opened(copy)
    draws = {"dy": np.ones(2, int), "dx": np.ones(2, int), "flip": np.zeros(2, bool)}
    teacher.gather(np.array([0, 17]), draws)
    for _ in range(2):
        with pytest.raises(UsageError, match="logits-00001.npy is damaged"):
            teacher.gather(np.array([0, 9]), draws)
    with pytest.raises(UsageError, match="logits-00001.npy is damaged"):
        opened(copy, verify=True)


CHANGES = {
    "teacher": lambda folder: {"saved": network(folder / "other", seed=1)},
    "training data": lambda folder: {"train": some("train", 21)},
    "test data": lambda folder: {"test": some("test", 7)},
    "data.augment.crop_padding": lambda folder: {
        "augment": data.Augment(crop_padding=2, flip=True)
    },
    "data.augment.padding_mode": lambda folder: {
        "augment": data.Augment(crop_padding=1, flip=True, padding_mode="reflect")
    },
    "data.augment.flip": lambda folder: {"augment": data.Augment(crop_padding=1)},
    "dtype": lambda folder: {"dtype": "float32"},
    "compute_dtype": lambda folder: {"compute_dtype": "bfloat16"},
    "taps": lambda folder: {"taps": ()},
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_store_of_other_answers_is_not_written_into(whole, tmp_path, name):
    before = contents(whole)
    match = rf"teacher.store=.*: made for {name}=.*; this run has "
    with pytest.raises(UsageError, match=match):
        precompute(whole, **arguments(tmp_path, **CHANGES[name](tmp_path)))
    assert contents(whole) == before


def test_parts_of_another_size_are_refused(whole, tmp_path):
    with pytest.raises(UsageError, match="has parts of 8; this run has 5"):
        precompute(whole, **arguments(tmp_path, part_size=5))


def test_a_folder_of_other_things_is_not_written_into(tmp_path):
    folder = tmp_path / "store"
    folder.mkdir()
    (folder / "thesis.tex").write_text("")
    message = "holds 'thesis.tex' but no manifest.json; expected a store of answers or a new folder"
    with pytest.raises(UsageError, match=message):
        precompute(folder, **arguments(tmp_path))
    with pytest.raises(UsageError, match="expected a folder that can be written"):
        precompute(folder / "thesis.tex", **arguments(tmp_path))
    assert [path.name for path in folder.iterdir()] == ["thesis.tex"]


def test_a_writer_killed_before_its_first_manifest_begins_anew(whole, tmp_path):
    folder = tmp_path / "store"
    folder.mkdir()
    (folder / ".manifest.json.x1y2").write_text("{")
    precompute(folder, **arguments(tmp_path))
    assert contents(folder) == contents(whole)


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=15_000))
    with pytest.raises(UsageError, match="teacher.store=.* 1.5e-05 GB free; expected the 1.*e-05"):
        precompute(tmp_path / "store", **arguments(tmp_path))
    assert not (tmp_path / "store").exists()


def test_a_disk_that_fills_up_leaves_whole_parts(whole, tmp_path, monkeypatch):
    written = []

    def write_atomically(path, content):
        if len(written) == 6:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(path)
        storage.write_atomically(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(sharded, "write_atomically", write_atomically)
        match = "cannot be written: No space left on device; 2 of 4 parts are whole, and the same"
        with pytest.raises(UsageError, match=match):
            precompute(tmp_path / "store", **arguments(tmp_path))
    precompute(tmp_path / "store", **arguments(tmp_path))
    assert contents(tmp_path / "store") == contents(whole)


def test_answers_that_float16_does_not_hold_are_refused(tmp_path):
    loud = network(tmp_path / "loud", scale=1e6)
    match = r"dtype='float16': holds numbers to 65504, and logits .* reach .*; expected 'float32'"
    with pytest.raises(UsageError, match=match):
        precompute(tmp_path / "half", **arguments(tmp_path, saved=loud))
    for dtype in ("bfloat16", "float32"):
        precompute(tmp_path / dtype, **arguments(tmp_path, saved=loud, dtype=dtype))
    peak = np.abs(opened(tmp_path / "float32").test_answers()["logits"]).max()
    assert 65504 < peak < np.inf


@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_answers_that_are_not_finite_are_refused(tmp_path, scale):
    saved = network(tmp_path / "broken", scale=scale)
    with pytest.raises(UsageError, match="logits of the teacher are not all finite"):
        precompute(tmp_path / "store", **arguments(tmp_path, saved=saved, dtype="float32"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "float64"}, "dtype='float64': unknown dtype"),
        ({"compute_dtype": "float16"}, "compute_dtype='float16': unknown dtype"),
        (
            {"taps": ("stage1",)},
            "taps='stage1': unknown tap; .*known: hidden1, hidden1_pre, pooled",
        ),
        ({"augment": data.Augment(mixup=0.2)}, "data.augment.mixup=0.2: it has endlessly many"),
        ({"batch_size": 9, "mesh": parallel.make_mesh(data=2)}, "batch_size=9: .* multiple of 2"),
    ],
)
def test_what_cannot_be_stored_is_refused(tmp_path, changes, message):
    with pytest.raises(UsageError, match=message):
        precompute(tmp_path / "store", **arguments(tmp_path, **changes))
    assert not (tmp_path / "store").exists()


def test_a_teacher_of_other_images_is_refused(tmp_path):
    larger = data.load("digits", "test", image_size=12)
    with pytest.raises(UsageError, match=r"takes \(8, 8, 1\) .* test images are \(12, 12, 1\)"):
        precompute(tmp_path / "store", **arguments(tmp_path, test=larger))


def test_many_devices_store_what_one_stores(whole, tmp_path):
    precompute(tmp_path / "store", **arguments(tmp_path, mesh=parallel.make_mesh(), batch_size=40))
    for name in ("logits-00001.npy", "test-pooled.npy"):
        one, many = (np.load(folder / name) for folder in (whole, tmp_path / "store"))
        np.testing.assert_allclose(many, one, atol=2e-3 if one.dtype == np.float16 else 1e-6)


@pytest.mark.parametrize(
    ("bytes_", "items", "views", "arrays", "expected"),
    [
        (1_620_000_000, 50_000, 162, 1, 1618),  # CIFAR-100's logits: 2**18 views a part
        (162_000_000, 50_000, 162, 1, 1618),  # CIFAR-10's: the same time, a tenth of the bytes
        (5_767_200_000, 50_000, 162, 2, 581),  # with 256 features: 64 MiB a part
        (10**12, 1000, 64, 2, 5),  # never more than about 400 files
        (10**9, 5, 2**20, 1, 1),  # never an empty part
    ],
)
def test_the_size_of_a_part(bytes_, items, views, arrays, expected):
    manifest = {"answer_bytes": bytes_, "items": items, "answers_an_item": views}
    manifest["arrays"] = dict.fromkeys(range(arrays))
    assert store.default_part_size(manifest) == expected
