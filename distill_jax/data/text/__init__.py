"""Text for language models: tokenizers, records from files, packed rows, batches.

    tokenizer = text.load_tokenizer("models/Llama-3.2-1B")
    documents = text.tokenize(text.read("corpus/*.jsonl"), tokenizer)
    train, held_out = text.split(documents, validation=0.05, split_seed=0)
    rows = text.pack(train, 2048)
    batches = text.training_feed(rows, Order(np.arange(len(rows)), seed), 32).at(position)

Everything is host numpy. To tokenise conversations, pass
`chat=text.load_chat_template(tokenizer)` to `tokenize`.
"""

from distill_jax.data.text.chat import ChatTemplate
from distill_jax.data.text.chat import has_template as has_chat_template
from distill_jax.data.text.chat import load as load_chat_template
from distill_jax.data.text.documents import Documents, split, tokenize
from distill_jax.data.text.feed import EvaluationFeed, TrainingFeed, evaluation_feed, training_feed
from distill_jax.data.text.packing import (
    Batch,
    Rows,
    fingerprint,
    pack,
    summary,
    without_unlearned,
)
from distill_jax.data.text.sources import FIELDS, Record, read
from distill_jax.data.text.tokenizer import Tokenizer, same_vocabulary
from distill_jax.data.text.tokenizer import load as load_tokenizer

__all__ = [
    "FIELDS",
    "Batch",
    "ChatTemplate",
    "Documents",
    "EvaluationFeed",
    "Record",
    "Rows",
    "Tokenizer",
    "TrainingFeed",
    "evaluation_feed",
    "fingerprint",
    "has_chat_template",
    "load_chat_template",
    "load_tokenizer",
    "pack",
    "read",
    "same_vocabulary",
    "split",
    "summary",
    "tokenize",
    "training_feed",
    "without_unlearned",
]
