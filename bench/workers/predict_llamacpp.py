"""Worker: llama.cpp through llama-cpp-python: the labels' log-probabilities of each row.

Each row is one `eval` of its prompt; of the logits, which llama.cpp computes for the last token
only (`logits_all=False`), the labels' are read. What rows begin with stays in its cache and is not
computed again. All cores; flash attention on or off, whichever was faster on these rows.
The high-level way, `create_completion(logprobs=...)`, asks for the logits of every token, and is
not timed. Several rows in one pass would hardly be faster: eight prompts of 128 tokens one by
one took no longer than 1,024 tokens at once.
"""

import os
import time
from pathlib import Path

import numpy as np

from protocol import Link, job, read_rows, serve


def main() -> None:
    link, asked = Link(), job()
    rows = read_rows(asked["rows"])

    import llama_cpp
    from llama_cpp import Llama

    cores = len(os.sched_getaffinity(0))

    def load(flash: bool) -> Llama:
        return Llama(
            asked["gguf"],
            n_ctx=512,
            n_batch=512,
            n_ubatch=512,
            n_threads=cores,
            n_threads_batch=cores,
            logits_all=False,
            flash_attn=flash,
            verbose=False,
        )

    def tokenised(llm: Llama, text: str) -> list[int]:
        return llm.tokenize(text.encode(), add_bos=False, special=False)

    def answered(llm: Llama) -> dict:
        labels = [tokenised(llm, word)[0] for word in (" false", " true")]
        said, read, last = [], 0, []
        for row in rows:
            tokens = tokenised(llm, row["prompt"])
            same = 0
            for ours, theirs in zip(last, tokens[:-1], strict=False):
                if ours != theirs:
                    break
                same += 1
            llm.n_tokens = same  # eval removes what stands in the cache behind it
            llm.eval(tokens[same:])
            logits = np.ctypeslib.as_array(
                llama_cpp.llama_get_logits_ith(llm.ctx, -1), shape=(llm.n_vocab(),)
            )[labels].astype(np.float64)
            log_probs = logits - np.logaddexp(*logits)
            said.append(int(log_probs.argmax()))
            read += len(tokens)
            last = tokens
        right = sum(label == row["label"] for label, row in zip(said, rows, strict=True))
        return {"rows": len(rows), "tokens": read, "right": right, "first_labels": said[:8]}

    seconds = {}
    for flash in (False, True):
        llm = load(flash)
        answered(llm)
        started = time.perf_counter()
        answered(llm)
        seconds[flash] = time.perf_counter() - started
        llm.close()
    llm = load(min(seconds, key=seconds.__getitem__))
    first = answered(llm)
    expected = sum(row["tokens"] for row in rows)
    if first["tokens"] != expected:
        raise RuntimeError(
            f"llama.cpp reads {first['tokens']} tokens where llabel reads {expected}: the rows "
            "would not be the same work"
        )
    serve(
        link,
        lambda: answered(llm),
        warm_laps=2,
        flash_attention={str(flash): took for flash, took in seconds.items()},
        system=llama_cpp.llama_print_system_info().decode(),
        file=Path(asked["gguf"]).name,
    )


if __name__ == "__main__":
    main()
