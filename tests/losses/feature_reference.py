"""Float64 references of the losses on features and on relations, as loops over single numbers.

They follow the formulas of the papers (or, where a loss says so, of the authors' code) one example,
channel, pair or triplet at a time, on plain numpy: they share no step with the code they check.
"""

import functools
import math

import jax
import numpy as np
from scipy.special import softmax

RTOL = 2e-5
ATOL = 2e-6


@functools.cache
def _compiled(loss, options):
    return jax.jit(functools.partial(loss, **dict(options)))


def compute(loss, *arrays, **options):
    """loss(*arrays, **options), compiled once for its options."""
    return _compiled(loss, tuple(options.items()))(*arrays)


def gradient(function, argnums=0):
    return jax.jit(jax.grad(function, argnums))


def value_and_gradient(function, argnums=0, has_aux=False):
    return jax.jit(jax.value_and_grad(function, argnums, has_aux))


def assert_near(actual, expected, scale=1.0):
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=RTOL, atol=ATOL * scale)


def direction(vector):
    """The vector with length 1; zeros stay zeros."""
    vector = np.asarray(vector, np.float64)
    length = math.sqrt(sum(float(x) ** 2 for x in vector.ravel()))
    return vector / length if length > 0 else np.zeros_like(vector)


def pooled(maps, size):
    """Adaptive average pooling of [B, H, W, C], window by window."""
    batch, height, width, channels = maps.shape
    out = np.empty((batch, *size, channels))
    for i in range(size[0]):
        top, bottom = math.floor(i * height / size[0]), math.ceil((i + 1) * height / size[0])
        for j in range(size[1]):
            left, right = math.floor(j * width / size[1]), math.ceil((j + 1) * width / size[1])
            out[:, i, j] = maps[:, top:bottom, left:right].reshape(batch, -1, channels).mean(1)
    return out


def same_size(a, b):
    size = min(a.shape[1], b.shape[1]), min(a.shape[2], b.shape[2])
    return pooled(a, size), pooled(b, size)


def attention(map_):
    """[H, W, C] -> [H, W], of length 1."""
    return direction([[np.dot(pixel, pixel) / pixel.size for pixel in row] for row in map_])


def attention_code(student, teacher):
    pairs = zip(*same_size(student, teacher), strict=True)
    return np.array([((attention(s) - attention(t)) ** 2).mean() for s, t in pairs])


def attention_paper(student, teacher):
    pairs = zip(*same_size(student, teacher), strict=True)
    return np.array([np.linalg.norm(attention(s) - attention(t)) for s, t in pairs])


def factor_code(student, teacher):
    pairs = zip(*same_size(student, teacher), strict=True)
    return np.array([np.abs(attention(s) - attention(t)).mean() for s, t in pairs])


def factor_paper(student, teacher):
    pairs = zip(*same_size(student, teacher), strict=True)
    return np.array([np.abs(direction(s) - direction(t)).sum() for s, t in pairs])


def selectivity(student, teacher):
    def kernel(a, b):
        return np.mean([[np.dot(x, y) ** 2 for y in b] for x in a])

    values = []
    for s, t in zip(*same_size(student, teacher), strict=True):
        s = [direction(s[..., c].ravel()) for c in range(s.shape[-1])]
        t = [direction(t[..., c].ravel()) for c in range(t.shape[-1])]
        values.append(kernel(t, t) - 2 * kernel(s, t) + kernel(s, s))
    return np.array(values)


def split_layers(maps):
    """Two layers of one network in one array: [B, H, W, 2] and a smaller one [B, h, w, C - 2]."""
    return maps[..., :2], maps[:, ::2, ::2, 2:]


def flow(student, teacher):
    def matrix(maps, b):
        first, second = same_size(*split_layers(maps))
        return [
            [(first[b, :, :, i] * second[b, :, :, j]).mean() for j in range(second.shape[-1])]
            for i in range(first.shape[-1])
        ]

    gaps = [np.array(matrix(student, b)) - matrix(teacher, b) for b in range(len(student))]
    return np.array([(gap**2).mean() for gap in gaps])


def square_mean(student, teacher):
    gaps = (np.ravel(s - t) for s, t in zip(student, teacher, strict=True))
    return np.array([np.dot(gap, gap) / gap.size for gap in gaps])


def boundary(student, teacher, margin):
    values = np.zeros(len(student))
    for index in np.ndindex(student.shape):
        s, t = student[index], teacher[index]
        if t <= 0 and s > -margin:
            values[index[0]] += (s + margin) ** 2
        if t > 0 and s <= margin:
            values[index[0]] += (s - margin) ** 2
    return values


def partial_distance(student, teacher, margin):
    values = np.zeros(len(student))
    for index in np.ndindex(student.shape):
        s, t = student[index], max(teacher[index], margin[index[-1]])
        if not s <= t <= 0:
            values[index[0]] += (s - t) ** 2
    return values


def pyramid(student, teacher):
    height = min(student.shape[1:3])
    levels = [(student, teacher)]
    levels += [(pooled(student, (n, n)), pooled(teacher, (n, n))) for n in (4, 2, 1) if n < height]
    weights = [0.5**i for i in range(len(levels))]
    errors = [((s - t) ** 2).reshape(len(s), -1).mean(1) for s, t in levels]
    return np.average(errors, axis=0, weights=weights)


def gaussian(mean, target, raw_scale):
    variance = [math.log1p(math.exp(a)) + 1e-5 for a in raw_scale]
    values = np.zeros(len(mean))
    for index in np.ndindex(mean.shape):
        v = variance[index[-1]]
        values[index[0]] += ((mean[index] - target[index]) ** 2 / v + math.log(v)) / 2
    return values / mean[0].size


def similarity(student, teacher):
    def rows(x):
        x = x.reshape(len(x), -1)
        return [direction([np.dot(a, b) for b in x]) for a in x]

    pairs = zip(rows(student), rows(teacher), strict=True)
    return np.array([((s - t) ** 2).sum() / len(student) for s, t in pairs])


def neighbours(student, teacher):
    """The products of neighbours' differences, so scaled that the mean over b is over pairs."""
    batch = len(student)
    values = np.zeros(batch)
    for b in range(batch - 1):
        products = (
            abs(student[b, d] - teacher[b, d]) * abs(student[b + 1, d] - teacher[b + 1, d])
            for d in range(student.shape[1])
        )
        values[b] = sum(products) * batch / (batch - 1)
    return values


def taylor(student, teacher):
    def kernel(x, y):
        c = np.dot(direction(x), direction(y))
        return math.exp(-0.8) * (1 + 0.8 * c + 0.32 * c * c)

    batch = range(len(student))
    gaps = [
        [kernel(student[i], student[j]) - kernel(teacher[i], teacher[j]) for j in batch]
        for i in batch
    ]
    return (np.array(gaps) ** 2).mean(1)


def huber(gap):
    return gap * gap / 2 if abs(gap) <= 1 else abs(gap) - 0.5


def distances(student, teacher):
    def relative(x):
        d = np.array([[math.dist(a, b) for b in x] for a in x])
        others = [d[i, j] for i in range(len(x)) for j in range(len(x)) if i != j]
        return d / np.mean(others) if np.any(others) else d

    gap = relative(student) - relative(teacher)
    return np.vectorize(huber)(gap).mean(1)


def angles(student, teacher):
    def cosine(x, i, k, j):
        return float(np.dot(direction(x[i] - x[k]), direction(x[j] - x[k])))

    batch = range(len(student))
    values = np.zeros(len(student))
    for k in batch:
        gaps = [cosine(student, i, k, j) - cosine(teacher, i, k, j) for i in batch for j in batch]
        values[k] = np.mean([huber(gap) for gap in gaps])
    return values


def neighbour_divergence(student, teacher):
    def probabilities(x):
        kernel = np.array([[(1 + np.dot(direction(a), direction(b))) / 2 for b in x] for a in x])
        return kernel / kernel.sum(1)[:, None]

    s, t = probabilities(student), probabilities(teacher)
    return (t * (np.log(t + 1e-7) - np.log(s + 1e-7))).mean(1)


def decoupled(student, teacher, labels, temperature):
    """(TCKD, NCKD) times T^2, from the probabilities themselves."""

    def divergence(p, q):
        return sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True))

    target, rest = [], []
    for z_s, z_t, y in zip(student, teacher, labels, strict=True):
        q, p = softmax(z_s / temperature), softmax(z_t / temperature)
        target.append(divergence((p[y], np.delete(p, y).sum()), (q[y], np.delete(q, y).sum())))
        q, p = (np.delete(x, y) / np.delete(x, y).sum() for x in (q, p))
        rest.append(divergence(p, q))
    return temperature**2 * np.array(target), temperature**2 * np.array(rest)


def correlation(x, y):
    """Pearson's, with 1e-8 added to the denominator; 0 where either is constant."""
    x, y = (np.array(v) - np.mean(v) if np.ptp(v) > 0 else np.zeros(len(v)) for v in (x, y))
    return sum(x * y) / (math.sqrt(sum(x * x)) * math.sqrt(sum(y * y)) + 1e-8)


def correlation_distance(student, teacher, temperature, beta, gamma):
    q, p = softmax(student / temperature, -1), softmax(teacher / temperature, -1)
    rows = np.array([correlation(a, b) for a, b in zip(q, p, strict=True)])
    columns = [correlation(a, b) for a, b in zip(q.T, p.T, strict=True)]
    return beta * (1 - rows) + gamma * (1 - np.mean(columns))


def gram_distance(student, teacher, temperature):
    q, p = softmax(student / temperature, -1), softmax(teacher / temperature, -1)
    batch = range(len(q))
    return np.array([sum((p[i] @ p[j] - q[i] @ q[j]) ** 2 for j in batch) for i in batch])


def class_gram_distance(student, teacher, temperature):
    q, p = softmax(student / temperature, -1).T, softmax(teacher / temperature, -1).T
    classes = range(len(q))
    total = sum((p[i] @ p[j] - q[i] @ q[j]) ** 2 for i in classes for j in classes)
    return np.full(q.shape[1], total / len(q))
