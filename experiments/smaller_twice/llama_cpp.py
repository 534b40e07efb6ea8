"""One GGUF file in llama.cpp: answers or times what stdin asks for, and prints JSON."""

import json
import pathlib
import re
import sys
import urllib.request
from typing import Any


def main() -> int:
    """Reads the work from stdin, does it with one thread, and prints what came out."""
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path = sys.argv[1]
    settings.n_ctx, settings.n_parallel = 1024, 1
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(settings)

    def post(route: str, body: dict[str, Any]) -> dict[str, Any]:
        data, kind = json.dumps(body).encode(), {"Content-Type": "application/json"}
        request = urllib.request.Request(server.listening_address + route, data, kind)
        with urllib.request.urlopen(request, timeout=600) as reply:
            return json.loads(reply.read())

    work = json.loads(sys.stdin.read())
    greedy = {"temperature": 0, "cache_prompt": False}
    if "prompts" in work:
        body = greedy | {"max_tokens": work["tokens"]}
        replies = (
            post("/v1/chat/completions", body | {"messages": [each]}) for each in work["prompts"]
        )
        found = {"answers": [reply["choices"][0]["message"]["content"] or "" for reply in replies]}
    else:
        body = greedy | {"n_predict": work["tokens"], "ignore_eos": True}
        times = post("/completion", body | {"prompt": work["speed"]})["timings"]
        found = {
            "tokens_per_second": times["predicted_per_second"],
            "prompt_tokens_per_second": times["prompt_per_second"],
            "memory_mib": _peak_mib(),
            "bytes": pathlib.Path(sys.argv[1]).stat().st_size,
        }
    print(json.dumps(found), flush=True)
    return 0


def _peak_mib() -> float:
    """The most memory that this program has had; `getrusage` counts that of its parent too."""
    found = re.search(r"VmHWM:\s*(\d+) kB", pathlib.Path("/proc/self/status").read_text())
    if found is None:
        raise RuntimeError("/proc/self/status has no VmHWM; expected Linux")
    return int(found[1]) / 1024


if __name__ == "__main__":
    sys.exit(main())
