"""One contender in a process of its own: it compiles, warms up, and measures on demand.

    python -m experiments.vocab_loss.contenders '{"name": "ours", "tokens": 1024, ...}'

Prints a line of JSON with its results, then for every line that it reads the seconds of one
computation of the loss and of its gradients with respect to the student's hidden states and head.
"""

import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Computation:
    """The loss and its gradients of a contender.

    Attributes:
      once: computes them, and returns when they are finished.
      values: the loss and the norms of both gradients of the last computation.
      peak_bytes: the peak memory so far.
    """

    once: Callable[[], None]
    values: Callable[[], tuple[float, float, float]]
    peak_bytes: Callable[[], int]


def draw(task: dict[str, Any]) -> list[np.ndarray]:
    """Hidden states and heads whose logits have a standard deviation of about 3, float32.

    Returns:
      student [N, Ds], head [Ds, V], teacher [N, Dt], head [Dt, V]: the same in every process.
    """
    generator = np.random.default_rng(0)
    arrays = []
    for width in (task["student_width"], task["teacher_width"]):
        arrays.append(generator.standard_normal((task["tokens"], width), np.float32))
        head = generator.standard_normal((width, task["vocab"]), np.float32)
        arrays.append(head * np.float32(3 / np.sqrt(width)))
    return arrays


def jax_loss(task: dict[str, Any], mesh: Any = None) -> Callable[..., Any]:
    """(student [N, Ds], head [Ds, V], teacher [N, Dt], head [Dt, V]) -> the mean over tokens.

    Args:
      task: its "name" is one of `JAX`.
      mesh: the devices that it is compiled for; None for those of this process.
    """
    import jax.numpy as jnp

    from distill_jax import losses
    from distill_jax.losses.vocab import VocabSettings

    option = {"beta": 0.5} if task["divergence"] == "jensen_shannon" else {}

    settings = VocabSettings(
        chunk=task["chunk"] or None,
        accumulate_dtype=task["dtype"] if task["name"] == "ours_low_memory" else "float32",
        mesh=mesh,
    )

    def ours(student, head, teacher, teacher_head):
        weights = jnp.full(task["tokens"], 1 / task["tokens"])
        return losses.vocab_divergence(
            student, head, teacher, teacher_head, weights=weights,
            divergence=task["divergence"], settings=settings,
        )[0]  # fmt: skip

    def dense(student, head, teacher, teacher_head):
        z_s, z_t = (
            jnp.matmul(*pair, preferred_element_type=jnp.float32)
            for pair in ((student, head), (teacher, teacher_head))
        )
        return jnp.mean(getattr(losses, task["divergence"])(z_s, z_t, **option))

    return dense if task["name"] == "dense" else ours


def in_jax(task: dict[str, Any]) -> Computation:
    """The computation of a contender in JAX."""
    import jax
    import jax.numpy as jnp

    given = tuple(jnp.asarray(a, jnp.dtype(task["dtype"])) for a in draw(task))
    compiled = jax.jit(jax.value_and_grad(jax_loss(task), (0, 1))).lower(*given).compile()
    last: list[Any] = [None]

    def once() -> None:
        last[0] = jax.block_until_ready(compiled(*given))

    def values() -> tuple[float, float, float]:
        value, gradients = last[0]
        to_hidden, to_head = (float(jnp.linalg.norm(g.astype(jnp.float32))) for g in gradients)
        return float(value), to_hidden, to_head

    def peak_bytes() -> int:
        stats = jax.devices()[0].memory_stats() or {}
        if "peak_bytes_in_use" in stats:
            return stats["peak_bytes_in_use"]
        memory = compiled.memory_analysis()
        inputs = sum(a.nbytes for a in given)
        return inputs + memory.temp_size_in_bytes + memory.output_size_in_bytes

    return Computation(once, values, peak_bytes)


def torch_loss(task: dict[str, Any], arrays: Sequence[Any]) -> Callable[[], Any]:
    """The loss of a contender in PyTorch.

    Args:
      task: its "name" is one of `TORCH`.
      arrays: student [N, Ds], head [V, Ds], teacher [N, Dt], head [V, Dt], tensors.
    """
    import torch

    student, head, teacher, teacher_head = arrays
    log_softmax = torch.nn.functional.log_softmax

    def eager() -> Any:
        log_q = log_softmax((student @ head.T).float(), -1)
        with torch.no_grad():
            log_p = log_softmax((teacher @ teacher_head.T).float(), -1)
        if task["divergence"] == "forward_kl":
            return (log_p.exp() * (log_p - log_q)).sum(-1).mean()
        log_m = torch.logaddexp(log_p, log_q) - np.log(2)
        terms = log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m)
        return 0.5 * terms.sum(-1).mean()

    beta = {"forward_kl": 0.0, "jensen_shannon": 0.5}[task["divergence"]]
    if task["name"] == "torch_compile":
        return torch.compile(eager)
    if task["name"] == "liger":
        from liger_kernel.transformers.fused_linear_jsd import LigerFusedLinearJSD

        fused = LigerFusedLinearJSD(jsd_beta=beta)
        return lambda: fused(student, head, teacher, teacher_head)
    if task["name"] == "liger_chunked":
        from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

        chunked = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=beta)
        labels = torch.zeros(task["tokens"], dtype=torch.long, device=student.device)
        return lambda: chunked(student, head, teacher, teacher_head, labels)
    return eager


def in_torch(task: dict[str, Any]) -> Computation:
    """The computation of a contender in PyTorch."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = getattr(torch, task["dtype"])
    # PyTorch's linear layers have weights [V, D].
    arrays = [
        torch.tensor(a if i % 2 == 0 else a.T.copy()).to(device, dtype)
        for i, a in enumerate(draw(task))
    ]
    student, head = arrays[:2]
    student.requires_grad_(True)
    head.requires_grad_(True)
    loss = torch_loss(task, arrays)
    last: list[Any] = [None]

    def once() -> None:
        student.grad = head.grad = None
        last[0] = loss()
        last[0].backward()
        if device == "cuda":
            torch.cuda.synchronize()

    def values() -> tuple[float, float, float]:
        to_hidden, to_head = (float(leaf.grad.float().norm()) for leaf in (student, head))
        return float(last[0].detach()), to_hidden, to_head

    def peak_bytes() -> int:
        if device == "cuda":
            return torch.cuda.max_memory_allocated()
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    return Computation(once, values, peak_bytes)


def main(argument: str) -> None:
    """Warms up, then measures for every line of stdin; the argument is the task in JSON."""
    task = json.loads(argument)
    contender = (in_torch if task["name"] in TORCH else in_jax)(task)
    for _ in range(2):
        contender.once()
    loss, to_hidden, to_head = contender.values()
    about = {
        "loss": loss,
        "to_hidden": to_hidden,
        "to_head": to_head,
        "peak_bytes": contender.peak_bytes(),
    }
    print(json.dumps(about), flush=True)
    for _ in sys.stdin:
        seconds = []
        for _ in range(task["repeats"]):
            began = time.perf_counter()
            contender.once()
            seconds.append(time.perf_counter() - began)
        print(json.dumps({"seconds": statistics.median(seconds)}), flush=True)


JAX = ("ours", "ours_low_memory", "dense")
TORCH = ("torch_eager", "torch_compile", "liger", "liger_chunked")

if __name__ == "__main__":
    main(sys.argv[1])
