"""One contender in a process of its own: it builds, warms up, and measures when it is told to.

    python -m experiments.vocab_loss.contenders '{"name": "ours", "tokens": 1024, ...}'

Prints a line of JSON with what it checked, then one for every line that it reads: the seconds of a
computation of the loss and of its gradients to the student's hidden states and head.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

# (seconds of one computation, loss, norms of the two gradients, peak bytes or None)
Measured = tuple[Callable[[], None], Callable[[], tuple[float, float, float]], Callable[[], int]]


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
      mesh: of the devices that it is compiled for; None for those that are here.
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


def in_jax(task: dict[str, Any]) -> Measured:
    import jax
    import jax.numpy as jnp

    given = tuple(jnp.asarray(a, jnp.dtype(task["dtype"])) for a in draw(task))
    compiled = jax.jit(jax.value_and_grad(jax_loss(task), (0, 1))).lower(*given).compile()
    found: list[Any] = [None]

    def once() -> None:
        found[0] = jax.block_until_ready(compiled(*given))

    def values() -> tuple[float, float, float]:
        value, gradients = found[0]
        return float(value), *(float(jnp.linalg.norm(g.astype(jnp.float32))) for g in gradients)

    def peak() -> int:
        stats = jax.devices()[0].memory_stats() or {}
        if "peak_bytes_in_use" in stats:
            return stats["peak_bytes_in_use"]
        memory = compiled.memory_analysis()
        inputs = sum(a.nbytes for a in given)
        return inputs + memory.temp_size_in_bytes + memory.output_size_in_bytes

    return once, values, peak


def in_torch(task: dict[str, Any]) -> Measured:
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = getattr(torch, task["dtype"])
    # A linear layer's weight is [V, D] there.
    student, head, teacher, teacher_head = (
        torch.tensor(a if i % 2 == 0 else a.T.copy()).to(device, dtype)
        for i, a in enumerate(draw(task))
    )
    student.requires_grad_(True)
    head.requires_grad_(True)
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

    if task["name"] == "torch_compile":
        loss = torch.compile(eager)
    elif task["name"] == "liger":
        from liger_kernel.transformers.fused_linear_jsd import LigerFusedLinearJSD

        beta = {"forward_kl": 0.0, "jensen_shannon": 0.5}[task["divergence"]]
        fused = LigerFusedLinearJSD(jsd_beta=beta)
        loss = lambda: fused(student, head, teacher, teacher_head)  # noqa: E731
    elif task["name"] == "liger_chunked":
        from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

        beta = {"forward_kl": 0.0, "jensen_shannon": 0.5}[task["divergence"]]
        fused = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=beta)
        labels = torch.zeros(task["tokens"], dtype=torch.long, device=device)
        loss = lambda: fused(student, head, teacher, teacher_head, labels)  # noqa: E731
    else:
        loss = eager
    found: list[Any] = [None]

    def once() -> None:
        student.grad = head.grad = None
        found[0] = loss()
        found[0].backward()
        if device == "cuda":
            torch.cuda.synchronize()

    def values() -> tuple[float, float, float]:
        gradients = (student.grad, head.grad)
        return float(found[0].detach()), *(float(g.float().norm()) for g in gradients)

    def peak() -> int:
        if device == "cuda":
            return torch.cuda.max_memory_allocated()
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    return once, values, peak


def main(argument: str) -> None:
    task = json.loads(argument)
    once, values, peak = (in_torch if task["name"] in TORCH else in_jax)(task)
    for _ in range(2):
        once()
    loss, to_hidden, to_head = values()
    about = {"loss": loss, "to_hidden": to_hidden, "to_head": to_head, "peak_bytes": peak()}
    print(json.dumps(about), flush=True)
    for _ in sys.stdin:
        seconds = []
        for _ in range(task["repeats"]):
            began = time.perf_counter()
            once()
            seconds.append(time.perf_counter() - began)
        print(json.dumps({"seconds": statistics.median(seconds)}), flush=True)


JAX = ("ours", "ours_low_memory", "dense")
TORCH = ("torch_eager", "torch_compile", "liger", "liger_chunked")

if __name__ == "__main__":
    main(sys.argv[1])
