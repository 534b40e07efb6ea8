"""What common licences of models ask of a model that is trained on another one's outputs.

This table is no legal advice. It answers one question, whether the outputs of a model (text that it
writes, its probabilities, its features) may train another model, with the clause that answers it,
so that a reader can look it up. `checked` tells how the entry was checked on `CHECKED_ON`: against
the "text" of the licence, against a "quotation" of the clause elsewhere, or not at all ("memory").
A licence that is missing here, or whose text leaves the question open, is "unknown".
"""

import dataclasses
import re
from typing import Literal

#: When the entries that are not from memory were compared with their texts.
CHECKED_ON = "2026-11-29"

Answer = Literal["yes", "conditions", "no", "unknown"]


@dataclasses.dataclass(frozen=True)
class Terms:
    """What a licence has on training other models on a model's outputs.

    Attributes:
      name: identifier on the Hugging Face Hub, in lower case.
      title: its name.
      answer: whether outputs may train other models: "yes", under "conditions", "no" or "unknown".
      clause: where it is decided, and how.
      source: URL of the text.
      checked: how the entry was checked: "text", "quotation" or "memory".
      obligations: what a model that was trained on outputs owes.
      on_hub: whether the Hub knows the name as a value of `license`; otherwise it is "other".
    """

    name: str
    title: str
    answer: Answer
    clause: str
    source: str
    checked: Literal["text", "quotation", "memory"] = "memory"
    obligations: tuple[str, ...] = ()
    on_hub: bool = True


_SILENT = "no clause restricts outputs"
_OPEN = "https://opensource.org/license"
_COMMONS = "https://creativecommons.org/licenses"
_ONLY_NON_COMMERCIAL = ("Use it for non-commercial purposes alone.",)


def _llama(version: str, source: str, checked: Literal["text", "quotation"]) -> Terms:
    """Llama 3.1 and later: outputs may train other models, whose names then begin with Llama."""
    return Terms(
        f"llama{version}",
        f"Llama {version} Community License",
        "conditions",
        "1.b.i: outputs may train an AI model, whose name then begins with Llama",
        source,
        checked,
        (
            "Its name begins with “Llama” where it is distributed (1.b.i).",
            "Display “Built with Llama” where it contains the weights (1.b.i).",
            f"Where it contains the weights, keep the notice “Llama {version} is licensed under "
            f"the Llama {version} Community License, Copyright © Meta Platforms, Inc. All Rights "
            "Reserved.” and a copy of the agreement (1.b.i, 1.b.iii).",
        ),
    )


def _openrail(name: str, title: str, source: str, checked: Literal["text", "memory"]) -> Terms:
    """OpenRAIL-M: a model that outputs trained is a derivative, with the restrictions of use."""
    return Terms(
        name,
        title,
        "conditions",
        "1: a model that outputs trained to perform similarly is a derivative; 4.a: the use "
        "restrictions pass on to it",
        source,
        checked,
        ("Distribute it with a copy of the license and its use restrictions (4).",),
    )


def _permissive(name: str, title: str, source: str) -> Terms:
    return Terms(name, title, "yes", _SILENT, source)


_LLAMA_MODELS = "https://github.com/meta-llama/llama-models/blob/main/models"
_GPL_OUTPUT = "section 2: output is covered only where its content is a covered work"

_ENTRIES = (
    _permissive("apache-2.0", "Apache License 2.0", "https://www.apache.org/licenses/LICENSE-2.0"),
    _permissive("mit", "MIT License", f"{_OPEN}/mit"),
    _permissive("bsd-2-clause", "BSD 2-Clause License", f"{_OPEN}/bsd-2-clause"),
    _permissive("bsd-3-clause", "BSD 3-Clause License", f"{_OPEN}/bsd-3-clause"),
    _permissive("isc", "ISC License", f"{_OPEN}/isc-license-txt"),
    _permissive("unlicense", "The Unlicense", "https://unlicense.org"),
    _permissive("cc0-1.0", "CC0 1.0", "https://creativecommons.org/publicdomain/zero/1.0/"),
    _permissive("cc-by-4.0", "CC BY 4.0", f"{_COMMONS}/by/4.0/"),
    _permissive("cdla-permissive-2.0", "CDLA-Permissive-2.0", "https://cdla.dev/permissive-2-0/"),
    Terms("gpl-3.0", "GPL 3.0", "yes", _GPL_OUTPUT, "https://www.gnu.org/licenses/gpl-3.0.html"),
    Terms("agpl-3.0", "AGPL 3.0", "yes", _GPL_OUTPUT, "https://www.gnu.org/licenses/agpl-3.0.html"),
    Terms(
        "cc-by-sa-4.0",
        "CC BY-SA 4.0",
        "unknown",
        f"{_SILENT}; whether a student is adapted material is open",
        f"{_COMMONS}/by-sa/4.0/",
    ),
    Terms(
        "cc-by-nc-4.0",
        "CC BY-NC 4.0",
        "conditions",
        f"2.a.1: non-commercial purposes alone; {_SILENT}",
        f"{_COMMONS}/by-nc/4.0/",
        obligations=_ONLY_NON_COMMERCIAL,
    ),
    Terms(
        "cc-by-nc-sa-4.0",
        "CC BY-NC-SA 4.0",
        "conditions",
        "2.a.1: non-commercial purposes alone; whether a student is adapted material is open",
        f"{_COMMONS}/by-nc-sa/4.0/",
        obligations=_ONLY_NON_COMMERCIAL,
    ),
    Terms(
        "cc-by-nc-nd-4.0",
        "CC BY-NC-ND 4.0",
        "unknown",
        "2.a.1: adapted material may not be shared; whether a student is some is open",
        f"{_COMMONS}/by-nc-nd/4.0/",
        obligations=_ONLY_NON_COMMERCIAL,
    ),
    Terms(
        "llama2",
        "Llama 2 Community License",
        "no",
        "1.b.v: outputs may not improve another large language model, but Llama 2 and its "
        "derivatives",
        "https://github.com/meta-llama/llama/blob/main/LICENSE",
        "quotation",
    ),
    Terms(
        "llama3",
        "Meta Llama 3 Community License",
        "no",
        "1.b.v: outputs may not improve another large language model, but Meta Llama 3 and its "
        "derivatives",
        "https://github.com/meta-llama/llama3/blob/main/LICENSE",
        "quotation",
    ),
    _llama("3.1", f"{_LLAMA_MODELS}/llama3_1/LICENSE", "text"),
    _llama("3.2", f"{_LLAMA_MODELS}/llama3_2/LICENSE", "text"),
    _llama("3.3", f"{_LLAMA_MODELS}/llama3_3/LICENSE", "quotation"),
    _llama("4", f"{_LLAMA_MODELS}/llama4/LICENSE", "text"),
    Terms(
        "gemma",
        "Gemma Terms of Use",
        "conditions",
        "1.1(e): a model trained on outputs to perform similarly is a Model Derivative; 3.1: the "
        "terms pass on to it",
        "https://ai.google.dev/gemma/terms",
        "text",
        (
            "Distribute it with a copy of the Gemma Terms of Use and their use restrictions (3.1).",
            "Add a Notice file: “Gemma is provided under and subject to the Gemma Terms of Use "
            "found at ai.google.dev/gemma/terms” (3.1).",
        ),
    ),
    Terms(
        "tongyi-qianwen",
        "Tongyi Qianwen License Agreement",
        "no",
        "4.b: outputs may not improve another large language model, but Tongyi Qianwen and its "
        "derivatives",
        "https://huggingface.co/Qwen/Qwen1.5-110B-Chat/blob/main/LICENSE",
        on_hub=False,
    ),
    Terms(
        "tongyi-qianwen-research",
        "Tongyi Qianwen Research License Agreement",
        "no",
        "4.b: outputs may not improve another large language model, but Tongyi Qianwen and its "
        "derivatives; 2.a: non-commercial purposes alone",
        "https://github.com/QwenLM/Qwen/blob/main/Tongyi%20Qianwen%20RESEARCH%20LICENSE%20AGREEMENT",
        "text",
        on_hub=False,
    ),
    Terms(
        "qwen",
        "Qwen License Agreement",
        "conditions",
        "4.b: a distributed model that outputs trained displays “Built with Qwen”",
        "https://huggingface.co/Qwen/Qwen2.5-72B-Instruct/blob/main/LICENSE",
        "quotation",
        ("Display “Built with Qwen” or “Improved using Qwen” in its documentation (4.b).",),
        on_hub=False,
    ),
    Terms(
        "qwen-research",
        "Qwen Research License Agreement",
        "conditions",
        "2.a: non-commercial purposes alone; 4.b: a distributed model that outputs trained "
        "displays “Built with Qwen”",
        "https://huggingface.co/Qwen/Qwen2.5-3B/blob/main/LICENSE",
        "quotation",
        (
            *_ONLY_NON_COMMERCIAL,
            "Display “Built with Qwen” or “Improved using Qwen” in its documentation (4.b).",
        ),
        on_hub=False,
    ),
    Terms(
        "mrl",
        "Mistral AI Research License",
        "unknown",
        "research purposes alone",
        "https://mistral.ai/licenses/MRL-0.1.md",
        on_hub=False,
    ),
    Terms(
        "mnpl",
        "Mistral AI Non-Production License",
        "unknown",
        "3.2: testing, research, personal or evaluation purposes in non-production environments",
        "https://mistral.ai/licenses/MNPL-0.1.md",
        "quotation",
        on_hub=False,
    ),
    Terms(
        "deepseek",
        "DeepSeek License Agreement 1.0",
        "conditions",
        "1: a model that outputs trained to perform similarly is a derivative; 4.a: the use "
        "restrictions pass on to it",
        "https://github.com/deepseek-ai/DeepSeek-V3/blob/main/LICENSE-MODEL",
        "text",
        ("Distribute it with a copy of the license and the use restrictions of attachment A (4).",),
        on_hub=False,
    ),
    _openrail(
        "creativeml-openrail-m",
        "CreativeML OpenRAIL-M",
        "https://huggingface.co/spaces/CompVis/stable-diffusion-license",
        "text",
    ),
    _openrail(
        "bigcode-openrail-m",
        "BigCode OpenRAIL-M v1",
        "https://huggingface.co/spaces/bigcode/bigcode-model-license-agreement",
        "memory",
    ),
    _openrail(
        "bigscience-openrail-m",
        "BigScience OpenRAIL-M",
        "https://huggingface.co/spaces/bigscience/license",
        "memory",
    ),
    Terms(
        "tencent-hunyuan-community",
        "Tencent Hunyuan Community License Agreement",
        "no",
        "5.b: outputs may not improve another large language model, but Tencent Hunyuan and its "
        "derivatives",
        "https://huggingface.co/tencent/Tencent-Hunyuan-Large/blob/main/LICENSE.txt",
        "text",
        on_hub=False,
    ),
    Terms(
        "openai-terms",
        "OpenAI Terms of Use",
        "no",
        "what you cannot do: use output to develop models that compete with OpenAI",
        "https://openai.com/policies/terms-of-use/",
        "quotation",
        on_hub=False,
    ),
    Terms(
        "anthropic-terms",
        "Anthropic Commercial Terms of Service",
        "no",
        "D.4: the services may not train competing AI models",
        "https://www.anthropic.com/legal/commercial-terms",
        "quotation",
        on_hub=False,
    ),
)

#: By name.
TERMS: dict[str, Terms] = {terms.name: terms for terms in _ENTRIES}

_OTHER_NAMES = {
    "apache2.0": "apache-2.0",
    "apache2": "apache-2.0",
    "apache-2": "apache-2.0",
    "apache": "apache-2.0",
    "apache-license-2.0": "apache-2.0",
    "mit-license": "mit",
    "bsd": "bsd-3-clause",
    "gpl-3.0-only": "gpl-3.0",
    "gpl-3.0-or-later": "gpl-3.0",
    "agpl-3.0-only": "agpl-3.0",
    "agpl-3.0-or-later": "agpl-3.0",
    "llama-2": "llama2",
    "llama-3": "llama3",
    "llama-3.1": "llama3.1",
    "llama-3.2": "llama3.2",
    "llama-3.3": "llama3.3",
    "llama-4": "llama4",
    "llama2-community-license": "llama2",
    "llama3-community-license": "llama3",
    "tongyi-qianwen-license": "tongyi-qianwen",
    "tongyi-qianwen-license-agreement": "tongyi-qianwen",
    "qianwen": "tongyi-qianwen",
    "qwen-license": "qwen",
    "qwen-license-agreement": "qwen",
    "qwen-research-license": "qwen-research",
    "mrl-0.1": "mrl",
    "mistral-ai-research-licence": "mrl",
    "mnpl-0.1": "mnpl",
    "deepseek-license": "deepseek",
    "deepseek-license-agreement": "deepseek",
    "openrail": "creativeml-openrail-m",
    "gemma-terms-of-use": "gemma",
    "tencent-hunyuan": "tencent-hunyuan-community",
}

# What the first lines of a text name, the more special ones first; a space stands for any.
_TITLES = (
    (r"LLAMA 2 COMMUNITY LICENSE", "llama2"),
    (r"META LLAMA 3 COMMUNITY LICENSE", "llama3"),
    (r"LLAMA 3\.1 COMMUNITY LICENSE", "llama3.1"),
    (r"LLAMA 3\.2 COMMUNITY LICENSE", "llama3.2"),
    (r"LLAMA 3\.3 COMMUNITY LICENSE", "llama3.3"),
    (r"LLAMA 4 COMMUNITY LICENSE", "llama4"),
    (r"Gemma Terms of Use", "gemma"),
    (r"Tongyi Qianwen RESEARCH LICENSE AGREEMENT", "tongyi-qianwen-research"),
    (r"Tongyi Qianwen LICENSE AGREEMENT", "tongyi-qianwen"),
    (r"Qwen RESEARCH LICENSE AGREEMENT", "qwen-research"),
    (r"Qwen LICENSE AGREEMENT", "qwen"),
    (r"Mistral AI Research License", "mrl"),
    (r"Mistral AI Non-Production License", "mnpl"),
    (r"DEEPSEEK LICENSE AGREEMENT", "deepseek"),
    (r"TENCENT HUNYUAN COMMUNITY LICENSE", "tencent-hunyuan-community"),
    (r"CreativeML Open ?RAIL(\+\+)?-M", "creativeml-openrail-m"),
    (r"BigCode Open ?RAIL-M", "bigcode-openrail-m"),
    (r"BigScience Open ?RAIL-M", "bigscience-openrail-m"),
    (r"^[\W]*(Creative Commons )?Attribution-NonCommercial-NoDerivatives 4\.0", "cc-by-nc-nd-4.0"),
    (r"^[\W]*(Creative Commons )?Attribution-NonCommercial-ShareAlike 4\.0", "cc-by-nc-sa-4.0"),
    (r"^[\W]*(Creative Commons )?Attribution-NonCommercial 4\.0", "cc-by-nc-4.0"),
    (r"^[\W]*(Creative Commons )?Attribution-ShareAlike 4\.0", "cc-by-sa-4.0"),
    (r"^[\W]*(Creative Commons )?Attribution 4\.0 International", "cc-by-4.0"),
    (r"^[\W]*(Creative Commons (Legal Code )?)?CC0 1\.0 Universal", "cc0-1.0"),
    (r"^[\W]*Apache License,? Version 2\.0", "apache-2.0"),
    (r"^[\W]*GNU AFFERO GENERAL PUBLIC LICENSE Version 3", "agpl-3.0"),
    (r"^[\W]*GNU GENERAL PUBLIC LICENSE Version 3", "gpl-3.0"),
)
# Sentences of the short licences, which often have no title.
_SENTENCES = (
    (r"Neither the name of .{0,200} may be used to endorse", "bsd-3-clause"),
    (r"Redistributions in binary form must reproduce", "bsd-2-clause"),
    (r"This is free and unencumbered software", "unlicense"),
    (r"Permission to use, copy, modify, and(/or)? distribute this software", "isc"),
    (r"Permission is hereby granted, free of charge, to any person", "mit"),
)
_HEAD, _SHORT = 400, 4000  # characters: of a title, and of a whole short licence


def canonical(name: str) -> str:
    """The name of a licence as this table has it; the name in lower case where it has it not."""
    plain = re.sub(r"[\s_]+", "-", name.strip().lower())
    return _OTHER_NAMES.get(plain, plain)


def recognise(text: str) -> str | None:
    """The licence that a text is, such as the content of LICENSE; None for another one.

    A text is what its title names, whatever licences it mentions later. The short licences are
    recognised by a sentence, where nothing more was added to them.
    """
    head = text.lstrip("\ufeff")[:_HEAD]
    if name := _first(_TITLES, head):
        return name
    if len(text) > _SHORT or re.search(r"modified|agreement|commercial|dual", head, re.IGNORECASE):
        return None
    return _first(_SENTENCES, text)


def _first(patterns: tuple[tuple[str, str], ...], text: str) -> str | None:
    """The name of the first pattern that a text has."""
    flags = re.IGNORECASE | re.MULTILINE | re.DOTALL
    for pattern, name in patterns:
        if re.search(pattern.replace(" ", r"\s+"), text, flags):
            return name
    return None
