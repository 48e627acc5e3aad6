"""Worker: transformers' `generate(max_new_tokens=1)` with the adapter merged into the model.

Float32, left padding, batches of rows of like length (sorted by length over the whole lap). The
batch size is the fastest of 8, 16 and 32 on these rows; each was tried once, after a first pass.
"""

import time

import torch

from protocol import Link, job, read_rows, serve

BATCH_SIZES = (8, 16, 32)


def main() -> None:
    link, asked = Link(), job()
    rows = read_rows(asked["rows"])

    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(asked["model"], padding_side="left")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    base = AutoModelForCausalLM.from_pretrained(asked["model"], dtype=torch.float32)
    model = PeftModel.from_pretrained(base, asked["adapter"]).merge_and_unload().eval()
    answers = [
        tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in (" false", " true")
    ]
    prompts = [row["prompt"] for row in rows]
    tokens = sum(row["tokens"] for row in rows)

    def answered(batch_size: int) -> int:
        """Rows answered rightly."""
        ids = tokenizer(prompts, add_special_tokens=False)["input_ids"]
        order = sorted(range(len(ids)), key=lambda row: -len(ids[row]))
        right = 0
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            batch = tokenizer.pad({"input_ids": [ids[row] for row in chosen]}, return_tensors="pt")
            written = model.generate(
                **batch,
                max_new_tokens=1,
                do_sample=False,
                pad_token_id=tokenizer.pad_token_id,
            )
            said = written[:, -1].tolist()
            right += sum(
                token == answers[rows[row]["label"]]
                for row, token in zip(chosen, said, strict=True)
            )
        return right

    # What generate writes may be no label at all (`right` counts such rows as wrong); the labels'
    # logits of the first rows show that it reads what the others read.
    first = tokenizer(prompts[:8], add_special_tokens=False, padding=True, return_tensors="pt")
    with torch.no_grad():
        said = model(**first, logits_to_keep=1).logits[:, -1, answers].argmax(dim=1).tolist()
    answered(BATCH_SIZES[-1])
    seconds = {}
    for size in BATCH_SIZES:
        started = time.perf_counter()
        answered(size)
        seconds[size] = time.perf_counter() - started
    best = min(seconds, key=seconds.__getitem__)

    def lap() -> dict:
        return {"rows": len(rows), "tokens": tokens, "right": answered(best)}

    serve(
        link,
        lap,
        warm_laps=1 + len(BATCH_SIZES),
        batch_size=best,
        tried_seconds=seconds,
        first_labels=said,
    )


if __name__ == "__main__":
    main()
