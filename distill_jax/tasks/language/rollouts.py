"""On-policy distillation: in some steps the student itself writes what it is trained on.

With probability lambda a step keeps the prompts of its batch and has the student continue them;
the teacher then scores what the student wrote (Agarwal et al. 2024, "On-policy distillation of
language models: learning from self-generated mistakes", section 3, algorithm 1). It is all one
program. Draws are functions of the seed, the step and the row, so a run that resumes writes the
same again. Left out on purpose: a gradient through the draws, as in the paper.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from distill_jax.generation import Decoding, Sampler, generate_tokens
from distill_jax.models.language import Decoder
from distill_jax.training.recipe import Batch


@dataclasses.dataclass(frozen=True)
class Rollout:
    """When the student writes, and how.

    Attributes:
      probability: lambda, of a batch, in (0, 1].
      sampler: how a token is chosen.
      max_new_tokens: M, of the longest response.
      prompt_tokens: of a prompt, at least, where a row has as many.
      vocab_size: how many ids are real.
      stops: ids that end a response, which then learns to end too.
      mesh: the devices.
    """

    probability: float
    sampler: Sampler
    max_new_tokens: int
    prompt_tokens: int
    vocab_size: int
    stops: tuple[int, ...]
    mesh: Mesh

    def __call__(self, decoder: Decoder, batch: Batch, key: jax.Array) -> tuple[Batch, jax.Array]:
        """The batch of a step, as it is or as the student continues it.

        Args:
          decoder: the student.
          batch: rows [B, T] of `text.Rows.batch`, one document each.
          key: of the step.

        Returns:
          The batch, and whether the student wrote it, a bool scalar.
        """
        choice, draws = jax.random.split(key)
        own = jax.random.uniform(choice) < self.probability
        rows = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(
            draws, jnp.arange(batch["tokens"].shape[0])
        )
        # Without operands the branches would have the arrays as constants of theirs.
        batch = jax.lax.cond(
            own, lambda batch: self.continued(decoder, batch, rows), lambda batch: batch, batch
        )
        return batch, own

    def continued(self, decoder: Decoder, batch: Batch, keys: jax.Array) -> Batch:
        """The rows with the student's responses in place of theirs.

        A prompt is what stands before the first token that is learned. Rows that leave no room for
        M tokens after it, or have nothing to learn, stay as they are.

        Args:
          decoder: the student.
          batch: rows [B, T], one document each.
          keys: typed keys [B].
        """
        tokens, mask = batch["tokens"], batch["mask"]
        length = tokens.shape[1]
        inputs = jnp.sum(batch["segments"] > 0, axis=1, dtype=jnp.int32)
        first = jnp.argmax(mask, axis=1).astype(jnp.int32) + 1
        prompts = jnp.maximum(first, jnp.minimum(self.prompt_tokens, inputs))
        window = length - self.max_new_tokens
        fits = (prompts <= window) & jnp.any(mask, axis=1)
        drawn = generate_tokens(
            decoder,
            tokens[:, :window],
            jnp.where(fits, prompts, 0),
            keys,
            Decoding(
                self.sampler,
                max_new_tokens=self.max_new_tokens,
                vocab_size=self.vocab_size,
                stop_ids=self.stops,
                mesh=self.mesh,
            ),
        )
        # A text of n tokens has n - 1 inputs, each with the next token as its target.
        place = jnp.arange(length + 1)[None]
        within = jnp.clip(place - prompts[:, None], 0, self.max_new_tokens - 1)
        response = jnp.take_along_axis(drawn.ids, within, axis=1)
        prompt = jnp.pad(tokens, ((0, 0), (0, 1)))
        end = (prompts + drawn.lengths)[:, None]
        text = jnp.where(place < prompts[:, None], prompt, response) * (place < end)
        read = place[:, :-1] < end - 1
        written = {
            "tokens": jnp.where(read, text[:, :-1], 0),
            "targets": jnp.where(read, text[:, 1:], 0),
            "segments": read.astype(jnp.int32),
            "positions": jnp.where(read, place[:, :-1], 0),
            "mask": read & (place[:, :-1] >= prompts[:, None] - 1),
        }
        return batch | {
            name: jnp.where(fits[:, None], value, batch[name]) for name, value in written.items()
        }
