"""train-prefix-reuse: rows/s with and without reading once what a micro-batch's prompts begin with.

    python bench/train_prefix_reuse.py [--quick]

Thirty-two labels, listed in the instruction of the alpaca template, which stands before the text;
the texts are BoolQ's questions. SmolLM2-135M, LoRA r 16 on all linear layers, batches of 16; laps
of 13 steps (208 rows, the next ones each lap). Both sides are llabel. About ten minutes on two
cores.
"""

from driver import Contender, measure_pairs
from record import compared, surroundings, table, write
from work import TOPICS, TRAINING, plan_from, write_rows


def main() -> None:
    plan = plan_from(__doc__)
    around = surroundings()
    path, _ = write_rows(
        "topics", "train", plan.training_rows,
        fields=("question",), classes=TOPICS, template="alpaca",
    )  # fmt: skip
    job = {
        "rows": str(path),
        "settings": TRAINING | {"template": "alpaca"} | dict(plan.settings),
        "classes": list(TOPICS),
        **plan.training,
    }
    reusing = Contender("llabel", "workers/train_ours.py", job | {"reuse": True}, "start read once")
    whole = Contender(
        "llabel-whole-prompts", "workers/train_ours.py", job | {"reuse": False}, "every row whole"
    )
    pairs = measure_pairs(reusing, [whole], plan.repeats)
    name, what = "train-prefix-reuse", "training rows/s, with / without prefix reuse, 32 labels"
    write(plan.results, compared(name, what, pairs, {"at_least": 2}), around)
    print(table(plan.results))


if __name__ == "__main__":
    main()
