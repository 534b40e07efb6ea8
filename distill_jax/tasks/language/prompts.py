"""Evaluation by answers: a student continues prompts, and references score what it writes.

Decoding is greedy, so that the same parameters give the same answers at any evaluation, on any
number of devices (except for logits that are equal up to rounding). The teacher's answers never
change: they are computed at the first evaluation, and kept. Several teachers answer nothing: they
are one mean of distributions, from which none of them would decode.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from distill_jax import generation, models
from distill_jax.data import text
from distill_jax.evaluation.text_metrics import METRICS
from distill_jax.tasks.base import Evaluate
from distill_jax.tasks.language.comparison import Comparison, Network
from distill_jax.training.recipe import Flat
from distill_jax.training.state import Frozen

SAMPLES = 5  # answers that are kept for a reader: those to the first prompts


@dataclasses.dataclass(frozen=True)
class PromptSet:
    """N prompts with their references.

    Attributes:
      prompts: as text, conversations as the template writes them.
      ids: what a model is given.
      references: what its answers are compared with.
      note: a line for the user about prompts that were left out; "" for none.
    """

    prompts: tuple[str, ...]
    ids: tuple[tuple[int, ...], ...]
    references: tuple[str, ...]
    note: str = ""

    @property
    def fingerprint(self) -> str:
        """SHA-256, in hex, of the ids and the references."""
        content = json.dumps([self.ids, self.references])
        return hashlib.sha256(content.encode()).hexdigest()


class PromptEvaluator:
    """Has a student answer the same prompts at each evaluation of a run.

    Args:
      prompts: at least one.
      tokenizer: of the prompts' ids.
      comparison: the networks, and how many ids are real.
      frozen: as in `Comparison.token_sums`, on the devices.
      mesh: the devices that share a batch.
      metrics: names of `METRICS`.
      max_new_tokens: of the longest answer.
      batch_size: prompts at a time, a multiple of the devices that share them.
    """

    def __init__(
        self,
        prompts: PromptSet,
        tokenizer: text.Tokenizer,
        comparison: Comparison,
        frozen: Frozen,
        mesh: Mesh,
        *,
        metrics: Sequence[str],
        max_new_tokens: int,
        batch_size: int,
    ):
        self.prompts = prompts
        self._tokenizer = tokenizer
        self._comparison = comparison
        self._frozen = frozen
        self._metrics = tuple(metrics)
        self._batch_size = batch_size
        self._decoding = generation.Decoding(
            generation.Sampler(temperature=0.0),
            max_new_tokens=max_new_tokens,
            vocab_size=comparison.vocab_size,
            stop_ids=tokenizer.stop_ids,
            mesh=mesh,
        )
        self._of_teacher: list[str] | None = None

    def __call__(self, params: Flat) -> dict[str, Any]:
        """The figures of the answers.

        Args:
          params: the student's that are trained, on the devices.

        Returns:
          "prompts", their number; each metric, its mean over them in [0, 1], and with one teacher
          also as "teacher_rouge_l" and so on; "samples", the first few: a list of {"prompt",
          "reference", "student"}, with one teacher also "teacher".
        """
        params = {**self._frozen.student, **params}
        answers = {"student": self._answers(self._comparison.student, params)}
        if self._comparison.teacher is not None:
            if self._of_teacher is None:
                teacher = self._comparison.teacher
                self._of_teacher = self._answers(teacher, self._frozen.teachers[0])
            answers["teacher"] = self._of_teacher
        prompts = self.prompts
        figures: dict[str, Any] = {"prompts": len(prompts.prompts)}
        for name, prefix in (("student", ""), ("teacher", "teacher_")):
            for metric in self._metrics if name in answers else ():
                pairs = zip(answers[name], prompts.references, strict=True)
                scores = [METRICS[metric](*pair) for pair in pairs]
                figures[prefix + metric] = float(np.mean(scores))
        columns = {"prompt": prompts.prompts, "reference": prompts.references, **answers}
        shown = range(min(SAMPLES, len(prompts.prompts)))
        figures["samples"] = [{name: rows[i] for name, rows in columns.items()} for i in shown]
        return figures

    def _answers(self, network: Network, params: Flat) -> list[str]:
        decoder = models.merge(network.graphdef, params)
        found = generation.generate(
            decoder, self.prompts.ids, self._decoding, batch_size=self._batch_size
        )
        return [
            generation.response_text(self._tokenizer, ids, response)
            for ids, response in zip(self.prompts.ids, found, strict=True)
        ]


def with_answers(evaluate: Evaluate, prompts: PromptEvaluator) -> Evaluate:
    """An evaluation whose figures include those of the answers."""
    return lambda params, stats: {**evaluate(params, stats), **prompts(params)}
