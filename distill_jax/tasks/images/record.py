"""The record of a run on images for its page: predictions, a few examples, and representations."""

import io
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from distill_jax import data, parallel
from distill_jax.evaluation.records import ImageRecord, log_softmax
from distill_jax.evaluation.representation import linear_cka
from distill_jax.models import Flat
from distill_jax.tasks.images.evaluation import ImageEvaluator
from distill_jax.teachers import Teachers

CKA_EXAMPLES = 512
THUMBNAIL = 64  # pixels of the longer side, at most
MOST_THUMBNAIL_BYTES = 2**21  # of all of them; the rest of the examples have none

Record = dict[str, np.ndarray]
#: (images in [0, 1]) -> the taps of the teacher on them.
TeacherTaps = Callable[[jax.Array], dict[str, jax.Array]]


def record_of(
    evaluator: ImageEvaluator,
    examples: data.Examples,
    teachers: Any,
    variables: Any,
    params: Flat,
    stats: Flat,
) -> Record:
    """The record of the test split; see `ImageRecord.arrays`.

    It also has "each_correct", uint8 [N], and "each_nll", float32 [N], of every example in the
    order of the split, and "each_of", its fingerprint, for paired comparisons of runs; "names", the
    classes; "thumbnails", uint8, WebP files one after another, and "thumbnail_ends", int64 [E],
    where each ends; and with one teacher that is a network "taps" and "cka" [P] of the taps of the
    same name, averaged over positions, on the first 512 examples.

    Args:
      evaluator: of the split.
      examples: the split, all of it.
      teachers: `Teachers` where they are networks.
      variables: their arrays.
      params: of the student, on the devices.
      stats: likewise.
    """
    record = ImageRecord(examples.info.num_classes)
    correct, nll = [], []
    for labels, student, teacher in evaluator.each(params, stats):
        record.add(labels, student, teacher)
        correct.append(np.uint8(student.argmax(-1) == labels))
        nll.append(-np.float32(log_softmax(student)[np.arange(len(labels)), labels]))
    found = record.arrays()
    found |= {"each_correct": np.concatenate(correct), "each_nll": np.concatenate(nll)}
    found["each_of"] = np.array(data.fingerprint(examples))
    found["names"] = np.array([str(name) for name in examples.info.class_names])
    files = list(_thumbnails(examples, found["ids"]))
    found["thumbnails"] = np.frombuffer(b"".join(files), np.uint8)
    found["thumbnail_ends"] = np.cumsum([len(file) for file in files])
    if isinstance(teachers, Teachers) and len(variables) == 1:
        found |= _alike(evaluator, teachers, variables, params, stats)
    return found


def _thumbnails(examples: data.Examples, ids: np.ndarray) -> Iterable[bytes]:
    """A small file of each image, b"" once the bytes are used up."""
    left = MOST_THUMBNAIL_BYTES
    for chunk in np.array_split(ids, max(len(ids) // 64, 1)):
        images = examples.batch(chunk)[0]
        for pixels in images:
            file = _thumbnail(pixels) if left > 0 else b""
            left -= len(file)
            yield file if left > 0 else b""


def _thumbnail(pixels: np.ndarray) -> bytes:
    """An image uint8 [H, W, C] as a WebP file, exact where it is tiny."""
    if pixels.shape[-1] not in (1, 3):
        return b""
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    small = max(image.size) <= 32
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", lossless=small and image.mode == "L", quality=80)
    return buffer.getvalue()


def _alike(
    evaluator: ImageEvaluator, teachers: Teachers, variables: Any, params: Flat, stats: Flat
) -> Record:
    """Linear CKA of the taps that student and teacher both have."""

    def of_both(params, stats, variables, images):
        student = evaluator.outputs_of(params, stats, images).taps
        teacher = teachers(variables, images)[0].taps
        shared = [name for name in student if name in teacher]
        return {n: (_pooled(student[n]), _pooled(teacher[n])) for n in shared}

    compiled = jax.jit(of_both)
    parts: list[dict[str, tuple[np.ndarray, np.ndarray]]] = []
    seen = 0
    for images, mask in evaluator.images():
        rows = parallel.fetch(mask)
        fetched = parallel.fetch(compiled(params, stats, variables, images))
        parts.append({n: (a[rows], b[rows]) for n, (a, b) in fetched.items()})
        seen += int(rows.sum())
        if seen >= CKA_EXAMPLES:
            break
    names = list(parts[0])
    joined = [
        [np.concatenate([part[name][i] for part in parts])[:CKA_EXAMPLES] for i in range(2)]
        for name in names
    ]
    return {"taps": np.array(names, np.str_), "cka": np.array([linear_cka(*p) for p in joined])}


def _pooled(tap: jax.Array) -> jax.Array:
    """[B, C]: the mean over positions of [B, ..., C]."""
    tap = tap.astype(jnp.float32)
    return tap.reshape(tap.shape[0], -1, tap.shape[-1]).mean(axis=1)
