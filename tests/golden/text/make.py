"""Writes the files of this folder, with transformers: they are what the tests compare with.

    python make.py --data=DIR

needs transformers, sentencepiece, jinja2 and protobuf, and the real data, of which it reads the
tokenizers, tok512.bin, and tiny shakespeare. Written with transformers 5.24.0, tokenizers 0.23.3,
sentencepiece 0.2.3 and jinja2 3.1.6.

ids.json: what transformers and sentencepiece make of TEXTS. tokenizer.json: a byte-level BPE of 320
tokens and the special tokens of four chat formats, trained here. chat.json: for each template and
conversation what `apply_chat_template` writes, its ids, and the tokens that it says the assistant
wrote, which it takes from tags inside the template. The templates are written here, in the manner
of four model families. tiny.model: the 400 pieces of a small SentencePiece model, and tiny.json,
what it makes of TEXTS.
"""

import argparse
import json
import pathlib
import struct
import tempfile

import sentencepiece
import tokenizers
import transformers
from sentencepiece import sentencepiece_model_pb2

HERE = pathlib.Path(__file__).parent

TEXTS = [
    "",
    " ",
    "Once upon a time, there was a little girl named Lily.",
    "  two spaces, then  two more ",
    "\n\nnew lines\n\n\n\ttab\r\n",
    "It's 1234567 o'clock; don't you'll we've I'm",
    "def f(x_1):\n    return x**2  # comment",
    "ÉCOLE naïve Straße",
    "東京 Москва 🙂👩‍👩‍👧 \u00a0nbsp \u200bzero",
    "aaaaaaaaaaaaaaaaaaaaaaaa" * 3,
    "<s> and </s> and <unk> and <|endoftext|>",
    "First Citizen:\nBefore we proceed any further, hear me speak.",
]

SPECIALS = [
    "<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>",
    "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<bos>", "<start_of_turn>",
    "<end_of_turn>", "[INST]", "[/INST]",
]  # fmt: skip

# With the tags that transformers reads the assistant's part from.
TEMPLATES = {
    "chatml": (
        "<|im_start|>",
        "<|im_end|>",
        """{%- if messages[0].role != 'system' %}
    {{- '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.role == 'assistant' %}
        {%- generation %}{{ message.content + '<|im_end|>' }}{%- endgeneration %}
    {%- else %}
        {{- message.content + '<|im_end|>' }}
    {%- endif %}
    {{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}""",
    ),
    "llama3": (
        "<|begin_of_text|>",
        "<|eot_id|>",
        """{% set loop_messages = messages %}
{% for message in loop_messages %}
    {% set head = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' %}
    {% if loop.index0 == 0 %}
        {% set head = bos_token + head %}
    {% endif %}
    {{- head }}
    {%- if message['role'] == 'assistant' %}
        {%- generation %}{{ message['content'] | trim + '<|eot_id|>' }}{%- endgeneration %}
    {%- else %}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{% if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}""",
    ),
    "gemma": (
        "<bos>",
        "<end_of_turn>",
        """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {{ raise_exception('System role not supported') }}
{%- endif -%}
{%- for message in messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception('Conversation roles must alternate') }}
    {%- endif -%}
    {%- if message['role'] == 'assistant' -%}
        {{ '<start_of_turn>model\n' }}
        {%- generation -%}{{ message['content'] | trim + '<end_of_turn>' }}{%- endgeneration -%}
        {{ '\n' }}
    {%- else -%}
        {{ '<start_of_turn>' + message['role'] + '\n' + message['content'] | trim }}
        {{- '<end_of_turn>\n' }}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<start_of_turn>model\n' }}
{%- endif -%}""",
    ),
    "mistral": (
        "<s>",
        "</s>",
        """{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] %}
    {%- set rest = messages[1:] %}
{%- else %}
    {%- set rest = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in rest %}
    {%- if message['role'] == 'user' %}
        {%- if loop.first and system is defined %}
            {{- '[INST] ' + system + '\n\n' + message['content'] + ' [/INST]' }}
        {%- else %}
            {{- '[INST] ' + message['content'] + ' [/INST]' }}
        {%- endif %}
    {%- elif message['role'] == 'assistant' %}
        {%- generation %}{{ ' ' + message['content'] | trim + eos_token }}{%- endgeneration %}
    {%- else %}
        {{- raise_exception('Only user and assistant roles are supported') }}
    {%- endif %}
{%- endfor %}""",
    ),
}


def _says(*contents: str, first: str = "user") -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [
        {"role": roles[(i + (first == "assistant")) % 2], "content": content}
        for i, content in enumerate(contents)
    ]


CONVERSATIONS = [
    _says("Who are you?", "A small model."),
    _says('Speak, <b>citizen</b> & "friend".', "No.", "Once more:\n\n1. é", "Yes,\nand 東京."),
    [{"role": "system", "content": "Be brief."}, *_says("Hi", "Hello there", "Bye", "Farewell")],
    _says("Tell me", "Of what?", "Of Rome"),
]


def ids(data: pathlib.Path) -> None:
    gpt2 = transformers.AutoTokenizer.from_pretrained(data / "tokenizers" / "gpt2")
    # AutoTokenizer builds a tokenizer of its own from the vocabulary of a Llama, which is not what
    # tokenizer.json says; this class reads the file.
    llama = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(data / "tokenizers" / "tinyllama" / "tokenizer.json")
    )
    slow = sentencepiece.SentencePieceProcessor(
        model_file=str(data / "tokenizers" / "tinyllama" / "tokenizer.model")
    )
    stories = sentencepiece.SentencePieceProcessor(
        model_proto=_stories(data / "teachers" / "stories260K_tok512.bin")
    )
    answers = {
        "texts": TEXTS,
        "gpt2": [gpt2(text, add_special_tokens=False)["input_ids"] for text in TEXTS],
        "tinyllama": [llama(text, add_special_tokens=False)["input_ids"] for text in TEXTS],
        "tinyllama_model": [slow.encode(text) for text in TEXTS],
        "stories260K": [stories.encode(text) for text in TEXTS],
    }
    (HERE / "ids.json").write_text(json.dumps(answers) + "\n")


def _stories(path: pathlib.Path) -> bytes:
    """The SentencePiece model that a .bin of llama2.c was exported from, as far as it is known."""
    data = path.read_bytes()
    pieces, position = [], 4
    while position < len(data):
        score, length = struct.unpack_from("<fi", data, position)
        pieces.append((data[position + 8 : position + 8 + length].decode(), score))
        position += 8 + length
    model = sentencepiece_model_pb2.ModelProto()
    kinds = sentencepiece_model_pb2.ModelProto.SentencePiece
    for number, (piece, score) in enumerate(pieces):
        kind = kinds.NORMAL
        if number < 3:
            kind = kinds.UNKNOWN if number == 0 else kinds.CONTROL
        elif number < 259:
            kind = kinds.BYTE
        name = piece.strip("\n") if number < 3 else piece.replace(" ", "▁")
        model.pieces.add(piece=name, score=score, type=kind)
    model.trainer_spec.model_type = sentencepiece_model_pb2.TrainerSpec.BPE
    model.trainer_spec.byte_fallback = True
    model.trainer_spec.vocab_size = len(pieces)
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = True
    model.normalizer_spec.remove_extra_whitespaces = False
    model.normalizer_spec.escape_whitespaces = True
    return model.SerializeToString()


def chat(data: pathlib.Path) -> None:
    words = (data / "text" / "tinyshakespeare.txt").read_text().split("\n")[:2000]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=320 + len(SPECIALS), special_tokens=SPECIALS, initial_alphabet=alphabet
    )
    tokenizer.train_from_iterator(words, trainer)
    tokenizer.save(str(HERE / "tokenizer.json"), pretty=False)

    cases = []
    for name, (bos, eos, template) in TEMPLATES.items():
        wrapped = transformers.PreTrainedTokenizerFast(
            tokenizer_file=str(HERE / "tokenizer.json"), bos_token=bos, eos_token=eos
        )
        for messages in CONVERSATIONS:
            case = {"template": name, "messages": messages}
            try:
                case["text"] = wrapped.apply_chat_template(
                    messages, chat_template=template, tokenize=False
                )
                case["opened"] = wrapped.apply_chat_template(
                    messages, chat_template=template, tokenize=False, add_generation_prompt=True
                )
                encoded = wrapped.apply_chat_template(
                    messages,
                    chat_template=template,
                    return_dict=True,
                    return_assistant_tokens_mask=True,
                )
                case["ids"] = list(encoded["input_ids"])
                case["written"] = list(encoded["assistant_masks"])
            except Exception as error:  # the template refuses the conversation
                case["refused"] = str(error)
            cases.append(case)
    templates = {
        name: {"bos": bos, "eos": eos, "source": source}
        for name, (bos, eos, source) in TEMPLATES.items()
    }
    content = {"templates": templates, "cases": cases}
    (HERE / "chat.json").write_text(json.dumps(content) + "\n")


def tiny(data: pathlib.Path) -> None:
    words = (data / "text" / "tinyshakespeare.txt").read_text().split("\n")[:2000]
    with tempfile.TemporaryDirectory() as folder:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(words),
            model_prefix=f"{folder}/tiny",
            vocab_size=400,
            model_type="bpe",
            byte_fallback=True,
            pad_id=3,
            normalization_rule_name="identity",
            minloglevel=2,
        )
        content = pathlib.Path(folder, "tiny.model").read_bytes()
    (HERE / "tiny.model").write_bytes(content)
    model = sentencepiece.SentencePieceProcessor(model_proto=content)
    answers = {"texts": TEXTS, "ids": [model.encode(text) for text in TEXTS]}
    (HERE / "tiny.json").write_text(json.dumps(answers) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=pathlib.Path, required=True)
    arguments = parser.parse_args()
    ids(arguments.data)
    chat(arguments.data)
    tiny(arguments.data)
