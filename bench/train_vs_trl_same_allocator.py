"""train-vs-trl-same-allocator: as train-vs-trl, with our allocator settings on TRL's side too.

    python bench/train_vs_trl_same_allocator.py [--quick]

The workers of train_vs_trl.py, but TRL's calls `llabel.engine.allocator.keep_freed_memory()` before
anything else: what is left of the ratio is not the allocator's. TRL runs without gradient
checkpointing, which is faster. About half an hour on two cores.
"""

from driver import measure_pairs
from record import compared, surroundings, table, write
from work import ours_training, peer_training, plan_from, write_rows


def main() -> None:
    plan = plan_from(__doc__)
    around = surroundings()
    path, _ = write_rows("train", "train", plan.training_rows)
    trl = peer_training(
        plan, path, "trl-allocator", "SFTTrainer + PEFT, no checkpointing, float32, our allocator",
        keep_freed_memory=True, gradient_checkpointing=False,
    )  # fmt: skip
    pairs = measure_pairs(ours_training(plan, path), [trl], plan.repeats)
    name, what = "train-vs-trl-same-allocator", "training rows/s, llabel / TRL with our allocator"
    write(plan.results, compared(name, what, pairs, {"at_least": 6}), around)
    print(table(plan.results))


if __name__ == "__main__":
    main()
