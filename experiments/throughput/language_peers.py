"""PyTorch's contenders on text: transformers' Llama, whole logits, AdamW, as its users write it.

The student is made of the teacher's layers. In bfloat16 both networks run under autocast over
float32 parameters. A step reads back its loss. Written from the papers and from our own
definitions.
"""

import contextlib
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM


class Trainer:
    """Two networks and an optimizer.

    Args:
      task: of all contenders: "model", "layers", and the values of the recipe.
      bf16: whether both compute under autocast to bfloat16.
    """

    def __init__(self, task: Mapping[str, Any], *, bf16: bool):
        self.task, self.bf16 = task, bf16
        self.teacher, self.student = (
            AutoModelForCausalLM.from_pretrained(task["model"], dtype=torch.float32)
            for _ in range(2)
        )
        self.teacher.eval().requires_grad_(False)
        blocks = self.student.train().model.layers
        self.student.model.layers = torch.nn.ModuleList(blocks[i] for i in task["layers"])
        for number, block in enumerate(self.student.model.layers):
            block.self_attn.layer_idx = number
        self.optimizer = torch.optim.AdamW(
            self.student.parameters(), lr=task["learning_rate"], weight_decay=task["weight_decay"]
        )

    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """The mean loss over the tokens, int64 [B, T]."""
        precision: contextlib.AbstractContextManager = contextlib.nullcontext()
        if self.bf16:
            precision = torch.autocast("cpu", dtype=torch.bfloat16)
        with precision:
            student = self.student(tokens, use_cache=False).logits
            with torch.no_grad():
                teacher = self.teacher(tokens, use_cache=False).logits
        student, teacher = (z.float().flatten(0, 1) for z in (student, teacher))
        divergence = functional.kl_div(
            functional.log_softmax(student, dim=1),
            functional.softmax(teacher, dim=1),
            reduction="batchmean",
        )
        hard = functional.cross_entropy(student, targets.flatten())
        weight = self.task["hard_weight"]
        return weight * hard + (1 - weight) * divergence

    def step(self, tokens: Tensor, targets: Tensor) -> float:
        """One step; returns its loss."""
        loss = self.loss(tokens, targets)
        value = loss.item()
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.student.parameters(), self.task["clip_norm"])
        self.optimizer.step()
        return value


def prepare(name: str, task: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The training function of "torch_f32" or "torch_bf16", and its description."""
    trainer = Trainer(task, bf16=name == "torch_bf16")
    with np.load(task["batches"]) as arrays:
        batches = [
            (torch.from_numpy(x).long(), torch.from_numpy(y).long())
            for x, y in zip(arrays["tokens"], arrays["targets"], strict=True)
        ]
    at = 0

    def train_for(seconds: float) -> int:
        nonlocal at
        done, deadline = 0, time.perf_counter() + seconds
        while time.perf_counter() < deadline:
            trainer.step(*batches[at % len(batches)])
            at, done = at + 1, done + batches[0][0].numel()
        return done

    return train_for, {"platform": "cpu", "threads": torch.get_num_threads()}
