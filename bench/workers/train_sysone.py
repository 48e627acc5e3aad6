"""Worker: sysone's `SystemOneModel(tuning="lora")` on a one-question choice task.

The same model, rows, order, batch size, rank, alpha and layers; float32. What cannot be the same:

- its prompt: the question and context stand behind "Choose the best option.\\nQuestion: Is it true
  or false?", then come both options in its own marks and "The answer is:". That makes rows some
  tens of tokens longer; they are cut at the same 256 tokens (of the context's end).
- its loss: cross-entropy over the options from a small head of its own on the options' hidden
  states, which is trained along with the adapters. It computes no vocabulary logits either.
- its learning rate for that head stays at its default; weight decay is 0.01 as by default.
- a batch is one padded forward pass. By default ("auto") it turns on gradient checkpointing for
  this work; `gradient_checkpointing` says otherwise.
- no validation, no early stopping, no calibration: only steps are timed.
"""

import torch

from protocol import Link, StepGate, job, read_rows

CLASSES = ("false", "true")


def main() -> None:
    link, asked = Link(), job()
    rows = read_rows(asked["rows"])

    from sysone import SystemOneModel
    from torch.optim.optimizer import register_optimizer_step_post_hook

    # It shuffles by this very call (sysone.training.train); laid out so, the rows come in order.
    generator = torch.Generator().manual_seed(asked["seed"])
    placed = list(rows)
    for position, row in enumerate(torch.randperm(len(rows), generator=generator).tolist()):
        placed[row] = rows[position]

    question = {
        "type": "choice",
        "instructions": "Is it true or false?",
        "criteria": list(CLASSES),
    }
    data = [
        {
            "state": f"Question: {row['fields']['question']}\nContext: {row['fields']['passage']}",
            "questions": {"answer": question},
            "expected": {"answer": CLASSES[row["label"]]},
        }
        for row in placed
    ]
    model = SystemOneModel(
        asked["model"],
        tuning="lora",
        num_layers="all",
        lora_layers="all",
        lora_targets="all",
        lora_rank=asked["r"],
        lora_alpha=asked["lora_alpha"],
        batch_size=asked["batch_size"],
        max_len=asked["max_length"],
        max_state_tokens=asked["max_length"],
        backbone_lr=asked["learning_rate"],
        scheduler="constant",
        warmup_ratio=0.0,
        epochs=1,
        validation_fraction=0.0,
        calibrate=False,
        precision="fp32",
        gradient_checkpointing=asked.get("gradient_checkpointing", "auto"),
        device="cpu",
        seed=asked["seed"],
    )
    gate = StepGate(link, [row["tokens"] for row in rows], asked)

    def step_done(*_: object) -> None:
        gate.facts["gradient_checkpointing"] = bool(model.backbone_.is_gradient_checkpointing)
        gate.step_done()

    register_optimizer_step_post_hook(step_done)
    model.fit(data)
    link.leave()


if __name__ == "__main__":
    main()
