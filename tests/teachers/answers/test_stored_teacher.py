"""A stored teacher: its answers are those that the teacher gives online to the very same view."""

import dataclasses
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax import data, models, parallel, teachers
from distill_jax.errors import UsageError
from distill_jax.teachers.answers import computing, images, schemes, stored_teacher
from distill_jax.teachers.views import View

AUGMENT = data.Augment(crop_padding=1, flip=True)
MIXED = data.Augment(crop_padding=1, flip=True, color_jitter=0.3, mixup=0.4)
SHAPE = {"input_shape": (8, 8, 1), "num_classes": 10}
OPTIONS = {"channels": (8, 16), "dense": 16}
TRAIN, TEST = data.load("digits", "train"), data.load("digits", "test")
TRAIN_IDS, VALIDATION_IDS = data.splits(TRAIN, validation=97, split_seed=0)
SEED, BATCH = 3, 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the teacher is, as "network", and the stores of this module."""
    folder = tmp_path_factory.mktemp("stores")
    spec = models.Spec("cnn", OPTIONS, **SHAPE, mean=(0.3,), std=(0.4,))
    _, params, stats = models.split(models.create("cnn", **SHAPE, seed=1, **OPTIONS))
    models.save(folder / "network", spec, params, stats)
    return folder


def given(folder, **changes):
    return {
        "saved": models.load(folder / "network"),
        "train": TRAIN,
        "test": TEST,
        "augment": AUGMENT,
        "dtype": "float32",
        "batch_size": 1024,
        "mesh": parallel.make_mesh(data=1),
    } | changes


def precompute_views(path, *, part_size=0, **computation):
    computation = computing.AnswerComputation(**computation)
    images.precompute_views(path, computation, part_size=part_size, note=lambda line: None)


def opened(path, verify=None, **changes):
    expected = {
        "train_fingerprint": data.fingerprint(TRAIN),
        "test_fingerprint": data.fingerprint(TEST),
        "augment": AUGMENT,
        "num_classes": 10,
    }
    required = stored_teacher.ImageRequirements(**expected | changes)
    return stored_teacher.open_image_store(path, required, verify=verify)


@pytest.fixture(scope="module")
def finite(folder):
    """The store of all views of all digits."""
    precompute_views(folder / "finite", **given(folder, part_size=300))
    return opened(folder / "finite")


@pytest.fixture(scope="module")
def seeded(folder):
    """The store of five mixed steps."""
    images.precompute_steps(
        folder / "seeded",
        computing.AnswerComputation(**given(folder, augment=MIXED, batch_size=BATCH)),
        train_ids=TRAIN_IDS,
        seed=SEED,
        steps=5,
        part_size=2,
        note=lambda line: None,
    )
    return opened(folder / "seeded", augment=MIXED)


@pytest.fixture(scope="module")
def online(folder):
    """(images [B, H, W, C]) -> the teacher's own answer."""
    teacher, variables = teachers.load([str(folder / "network")], **SHAPE)
    return jax.jit(lambda images: teacher(variables, images)[0])


def seen(ids, draws, options=AUGMENT):
    """The view of some digits."""
    images, labels = TRAIN.batch(np.asarray(ids))
    return data.view(jnp.asarray(images), jnp.asarray(labels), 10, draws, options)[0]


def assert_same(found, expected, **tolerance):
    np.testing.assert_allclose(found.logits, expected.logits, **tolerance)
    np.testing.assert_allclose(found.taps["pooled"], expected.taps["pooled"], **tolerance)
    assert found.logits.dtype == found.taps["pooled"].dtype == jnp.float32
    assert list(found.taps) == ["pooled"]


def test_every_view_of_every_image_has_the_answer_of_the_teacher(finite, online):
    scheme, stored_answers = finite.scheme, finite.resident()
    assert stored_answers["logits"].shape == (len(TRAIN), scheme.count, 10)
    everything = np.arange(len(TRAIN))
    for index in range(scheme.count):
        draws = scheme.draws(jnp.full(len(TRAIN), index, jnp.int32))
        answer = online(seen(everything, draws))
        for name, expected in (("logits", answer.logits), ("pooled", answer.taps["pooled"])):
            np.testing.assert_allclose(stored_answers[name][:, index], expected, atol=1e-6)


@pytest.mark.parametrize("step", [0, 1, 77])
def test_a_training_gets_the_same_answers_resident_streamed_and_online(finite, online, step):
    ids = data.Order(TRAIN_IDS, SEED).ids(step * BATCH, BATCH)
    draws = data.draw(schemes.view_key(SEED, step), BATCH, AUGMENT)
    images = seen(ids, draws)
    answers = jax.jit(
        lambda variables, given: finite.outputs(variables, View(images, ids, draws, given))[0]
    )
    resident = answers([jax.device_put(finite.resident())], {})
    assert_same(resident, online(images), atol=1e-6)
    streamed = finite.gather(ids, schemes.host_draws(SEED, step, BATCH, AUGMENT))
    assert list(streamed) == ["teacher/logits", "teacher/pooled"]
    assert_same(answers([], {"id": ids, **streamed}), resident, atol=0)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float16", 2**-11), ("bfloat16", 2**-8), ("float32", 1e-6)]
)
def test_answers_are_kept_to_the_precision_of_their_dtype(
    folder, online, dtype, tolerance, tmp_path
):
    options = data.Augment(crop_padding=2, padding_mode="reflect")
    precompute_views(
        tmp_path / "store", **given(folder, augment=options, dtype=dtype, part_size=700)
    )
    teacher = opened(tmp_path / "store", augment=options, dtype=dtype)
    ids = np.array([0, 699, 700, 1296, 5])
    draws = data.draw(jax.random.key(0), 5, options)
    view = View(seen(ids, draws, options), ids, draws, teacher.gather(ids, jax.device_get(draws)))
    assert view.stored_answers["teacher/logits"].dtype == jnp.dtype(dtype)
    found, expected = teacher.outputs([], view)[0], online(view.images)
    assert_same(found, expected, rtol=tolerance * 1.01, atol=1e-6)
    np.testing.assert_array_equal(
        teacher.resident()["logits"][ids, teacher.scheme.index(jax.device_get(draws))],
        view.stored_answers["teacher/logits"],
    )


@pytest.mark.parametrize("options", [data.Augment(flip=True), data.Augment()], ids=["flip", "none"])
def test_fewer_draws_make_fewer_views(folder, online, tmp_path, options):
    precompute_views(tmp_path / "store", **given(folder, augment=options))
    teacher = opened(tmp_path / "store", augment=options)
    ids = np.array([4, 2])
    draws = data.draw(jax.random.key(1), 2, options)
    view = View(seen(ids, draws, options), ids, draws, teacher.gather(ids, jax.device_get(draws)))
    for variables in ([], [jax.device_put(teacher.resident())]):
        assert_same(teacher.outputs(variables, view)[0], online(view.images), atol=1e-6)


def test_evaluation_gets_the_answers_to_images_as_they_are(finite, seeded, online):
    tests = online(data.identity(*map(jnp.asarray, TEST.arrays()), 10)[0])
    held_out = online(data.identity(*map(jnp.asarray, TRAIN.batch(VALIDATION_IDS)), 10)[0])
    for teacher in (finite, seeded):
        for found, expected in (
            (teacher.test_answers(), tests),
            (teacher.validation_answers(VALIDATION_IDS), held_out),
        ):
            assert all(array.dtype == np.float32 for array in found.values())
            np.testing.assert_allclose(found["logits"], expected.logits, atol=1e-6)
            np.testing.assert_allclose(found["pooled"], expected.taps["pooled"], atol=1e-6)


def test_a_store_of_steps_has_no_plain_answers_to_what_it_trains_on(seeded):
    with pytest.raises(UsageError, match=f"97 training images .* image {TRAIN_IDS[0]}, which is"):
        seeded.validation_answers(np.append(VALIDATION_IDS, TRAIN_IDS[0]))


def test_a_store_of_steps_has_the_examples_keys_and_answers_of_the_training(seeded, online):
    ids, keys, answers = seeded.rows(0, 5)
    np.testing.assert_array_equal(ids.ravel(), data.Order(TRAIN_IDS, SEED).ids(0, 5 * BATCH))
    assert ids.dtype == np.int32 and keys.dtype == np.uint32

    @jax.jit
    def view_and_answer(ids, words):
        draws = data.draw(jax.random.wrap_key_data(words), BATCH, MIXED)
        pixels = jnp.asarray(TRAIN.arrays()[0])[ids]
        view, _ = data.view(pixels, jnp.zeros(BATCH, int), 10, draws, MIXED)
        return online(view)

    for step in range(5):
        key, _ = jax.random.split(jax.random.fold_in(jax.random.key(SEED), step))
        np.testing.assert_array_equal(keys[step], jax.random.key_data(key))
        batch = {name: array[step] for name, array in answers.items()}
        found = seeded.outputs([], View(jnp.zeros(()), ids[step], {}, batch))[0]
        assert_same(found, view_and_answer(ids[step], keys[step]), atol=2e-6)


def test_a_training_goes_over_the_steps_again_and_again(seeded):
    whole = seeded.rows(0, 5)
    for found, expected in zip(
        jax.tree.leaves(seeded.rows(13, 9)), jax.tree.leaves(whole), strict=True
    ):
        np.testing.assert_array_equal(found, expected[(13 + np.arange(9)) % 5])


def test_a_stored_teacher_stands_in_for_one_that_answers_online(finite, seeded, folder):
    saved = models.load(folder / "network")
    for teacher in (finite, seeded):
        assert teacher.specs == (saved.spec,)
        assert teacher.fingerprints == (saved.fingerprint,)
        assert teacher.parameters == (models.parameter_count(saved.params),)
        assert (teacher.weights, teacher.own_average, teacher.precomputed) == ((1.0,), False, True)
        assert teacher.params({}) == {}
        shapes = teacher.abstract(7)
        assert (shapes.logits.shape, shapes.taps["pooled"].shape) == ((7, 10), (7, 16))
    assert finite.nbytes == sum(array.nbytes for array in finite.resident().values())


def test_a_store_can_be_sent_to_another_process(finite):
    ids = np.array([3, 1200])
    draws = schemes.host_draws(0, 0, 2, AUGMENT)
    expected = finite.gather(ids, draws)
    sent = pickle.dumps(finite)
    assert len(sent) < 20_000
    found = pickle.loads(sent).gather(ids, draws)
    np.testing.assert_array_equal(found["teacher/logits"], expected["teacher/logits"])


def test_what_a_store_of_another_kind_cannot_do(finite, seeded):
    with pytest.raises(TypeError, match="expected a seeded store, this one is finite"):
        finite.rows(0, 1)
    for ask in (seeded.resident, lambda: seeded.gather(np.zeros(1, int), {})):
        with pytest.raises(TypeError, match="expected a finite store, this one is seeded"):
            ask()


OTHER = "0" * 64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher_fingerprint": OTHER}, "made for teacher='.{12}'; this run has '000000000000'"),
        ({"train_fingerprint": OTHER}, "made for training data='.{12}'; this run has '0000"),
        ({"test_fingerprint": OTHER}, "made for test data='.{12}'; this run has '0000"),
        ({"num_classes": 100}, "made for classes=10; this run has 100"),
        (
            {"augment": data.Augment(crop_padding=2, flip=True)},
            "made for data.augment.crop_padding=1; this run has 2",
        ),
        (
            {"augment": data.Augment(crop_padding=1)},
            "made for data.augment.flip=True; this run has False",
        ),
        (
            {"augment": dataclasses.replace(AUGMENT, padding_mode="reflect")},
            "made for data.augment.padding_mode='zero'; this run has 'reflect'",
        ),
        (
            {"augment": dataclasses.replace(AUGMENT, mixup=0.1)},
            "made for data.augment.mixup=0.0; this run has 0.1",
        ),
        ({"dtype": "float16"}, "made for dtype='float32'; this run has 'float16'"),
        (
            {"compute_dtype": "bfloat16"},
            "made for compute_dtype='float32'; this run has 'bfloat16'",
        ),
        ({"taps": ("pooled", "stage1")}, r"holds the taps \['pooled'\]; this run reads 'stage1'"),
    ],
)
def test_a_store_that_was_made_for_something_else_is_refused(finite, changes, message):
    path = finite.store.path
    with pytest.raises(UsageError, match=rf"^teacher.store='{path}': {message}") as caught:
        opened(path, **changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 64}, "made for batch_size=32; this run has 64"),
        ({"seed": 4}, "made for seed=3; this run has 4"),
        ({"train_ids": TRAIN_IDS[:-1]}, "made for train_ids='.{12}'; this run has '"),
        (
            {"augment": dataclasses.replace(MIXED, mixup=0.5)},
            "made for data.augment.mixup=0.4; this run has 0.5",
        ),
    ],
)
def test_a_store_of_other_steps_is_refused(seeded, changes, message):
    same = {"augment": MIXED, "batch_size": BATCH, "seed": SEED, "train_ids": TRAIN_IDS}
    opened(seeded.store.path, **same)
    with pytest.raises(UsageError, match=f"^teacher.store='.*': {message}"):
        opened(seeded.store.path, **same | changes)


def test_a_store_of_views_serves_any_seed_batch_size_and_choice_of_examples(finite):
    opened(finite.store.path, batch_size=7, seed=99, train_ids=TRAIN_IDS[:5])


def test_a_strong_view_beside_the_stored_one_changes_nothing(finite):
    opened(finite.store.path, augment=dataclasses.replace(AUGMENT, strong_ops=2))


def test_another_generator_of_keys_is_refused(seeded):
    with jax.default_prng_impl("rbg"):
        with pytest.raises(UsageError, match="made for key_implementation='threefry2x32'; .*'rbg'"):
            opened(seeded.store.path, augment=MIXED)


def test_a_version_of_jax_that_draws_other_views_is_refused(seeded, monkeypatch):
    probe = schemes.Seeded.probe

    def changed(self, options):
        return {**probe(self, options), "partner": list(range(16))}

    monkeypatch.setattr(schemes.Seeded, "probe", changed)
    with pytest.raises(UsageError, match=f"that jax {jax.__version__} draws; .* draws others"):
        opened(seeded.store.path, augment=MIXED)
