"""Opens the prompts that a run on text answers at its evaluations."""

from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from distill_jax import generation, parallel
from distill_jax.data import text
from distill_jax.errors import UsageError
from distill_jax.evaluation.text_metrics import unscorable
from distill_jax.tasks.language.comparison import Comparison
from distill_jax.tasks.language.prompts import PromptEvaluator, PromptSet
from distill_jax.training.state import Frozen

#: The key of the prompts that belong to each split. Those of "test" choose nothing.
KEYS = {"validation": "prompts", "test": "test_prompts"}


def open_prompts(
    config: ConfigDict,
    tokenizer: text.Tokenizer,
    comparison: Comparison,
    frozen: Frozen,
    mesh: Mesh,
) -> dict[str, PromptEvaluator]:
    """The evaluators of the splits that have prompts; writes nothing.

    Args:
      config: resolved.
      tokenizer: of the run.
      comparison: the networks.
      frozen: as in `Comparison.token_sums`, on the devices.
      mesh: the devices.

    Raises:
      UsageError: a file that cannot be read, a line that is no prompt with a response, a reference
        that no answer could match, a prompt that leaves no room for an answer, or a batch that does
        not divide.
    """
    chosen = config.evaluation
    found = {}
    for split, name in KEYS.items():
        if not chosen[name]:
            continue
        parallel.check_divides(mesh, "evaluation.prompt_batch_size", chosen.prompt_batch_size)
        found[split] = PromptEvaluator(
            _read(config, name, tokenizer, comparison),
            tokenizer,
            comparison,
            frozen,
            mesh,
            metrics=chosen.metrics,
            max_new_tokens=chosen.max_new_tokens,
            batch_size=chosen.prompt_batch_size,
        )
    return found


def describe(opened: dict[str, PromptEvaluator]) -> dict[str, Any]:
    """What a manifest records of the prompts: how many of each split, and their fingerprint."""
    return {
        split: {
            "count": len(evaluator.prompts.prompts),
            "fingerprint": evaluator.prompts.fingerprint,
        }
        for split, evaluator in opened.items()
    }


def _read(
    config: ConfigDict, name: str, tokenizer: text.Tokenizer, comparison: Comparison
) -> PromptSet:
    chosen = config.evaluation
    fields = config.data.fields if chosen.fields == "same" else chosen.fields
    prompts = generation.read_prompts(
        chosen[name],
        fields="" if fields == "named" else fields,
        key=f"evaluation.{name}",
        references=True,
    )
    prompts, ids = generation.encode_prompts(
        prompts[: chosen.max_prompts or None], tokenizer, as_chat=config.data.chat
    )
    for prompt, own in zip(prompts, ids, strict=True):
        if beyond := [number for number in own if number >= comparison.vocab_size]:
            raise UsageError(
                f"{prompt.location}: has id {beyond[0]} ({tokenizer.token(beyond[0])!r}), which "
                f"teacher and student do not share; expected ids below {comparison.vocab_size}"
            )
    references = [prompt.reference or "" for prompt in prompts]  # `read_prompts` requires them
    for prompt, reference in zip(prompts, references, strict=True):
        for metric in chosen.metrics:
            fault = unscorable(metric, reference)
            if fault:
                raise UsageError(
                    f"{prompt.location}: the response {fault}, so {metric} of any answer is 0; "
                    "expected one that can be matched"
                )
    networks = filter(None, (comparison.student, comparison.teacher))
    fitting = generation.choose_fitting(
        prompts,
        ids,
        [network.config for network in networks],
        chosen.max_new_tokens,
        long=chosen.long_prompts,
        location=f"evaluation.{name}={chosen[name]!r}",
    )
    return PromptSet(
        tuple(prompts[number].text for number in fitting.kept),
        tuple(tuple(ids[number]) for number in fitting.kept),
        tuple(references[number] for number in fitting.kept),
        fitting.note,
    )
