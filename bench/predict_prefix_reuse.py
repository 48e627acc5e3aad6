"""predict-prefix-reuse: rows/s with and without reading once what all prompts begin with.

    python bench/predict_prefix_reuse.py [--quick]

Thirty-two labels, listed in the instruction of the alpaca template, which stands before the text;
the texts are BoolQ's questions. SmolLM2-135M as it is (zero-shot), 208 rows a lap, the same each
lap. Both sides are llabel. About five minutes on two cores.
"""

from driver import Contender, measure_pairs
from record import compared, surroundings, table, write
from work import MAX_LENGTH, MODEL, TOPICS, plan_from, write_rows


def main() -> None:
    plan = plan_from(__doc__)
    around = surroundings()
    path, _ = write_rows(
        "topics", "validation", plan.rows,
        fields=("question",), classes=TOPICS, template="alpaca",
    )  # fmt: skip
    settings = {"model": MODEL, "max_seq_length": MAX_LENGTH, "template": "alpaca"}
    job = {
        "rows": str(path),
        "settings": settings | dict(plan.settings),
        "classes": list(TOPICS),
    }
    reusing = Contender(
        "llabel", "workers/predict_ours.py", job | {"reuse": True}, "with prefix reuse"
    )
    whole = Contender(
        "llabel-whole-prompts", "workers/predict_ours.py", job | {"reuse": False}, "without"
    )
    pairs = measure_pairs(reusing, [whole], plan.repeats)
    name, what = "predict-prefix-reuse", "rows/s, with / without prefix reuse, 32 labels"
    write(plan.results, compared(name, what, pairs, {"at_least": 2}), around)
    print(table(plan.results))


if __name__ == "__main__":
    main()
