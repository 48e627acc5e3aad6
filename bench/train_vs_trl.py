"""train-vs-trl and memory-vs-trl: rows/s and peak memory of LoRA training beside TRL + PEFT.

    python bench/train_vs_trl.py [--quick]

SmolLM2-135M, rows of BoolQ in their order, at most 256 tokens, LoRA r 16 on all linear layers,
batches of 16, AdamW. Laps of 13 steps (208 rows, the next ones each lap, the same for all). TRL
runs without gradient checkpointing, which is faster, and for one lap with it, as its defaults are;
each ratio is against the better of the two: the faster one for speed, the smaller one for memory.
Peak memory is that of the whole process, from its start. About 40 minutes on two cores.
"""

from driver import measure_pairs
from record import compared, surroundings, table, write
from work import ours_training, peer_training, plan_from, write_rows


def main() -> None:
    plan = plan_from(__doc__)
    around = surroundings()
    path, _ = write_rows("train", "train", plan.training_rows)
    trl = peer_training(plan, path, "trl", "SFTTrainer + PEFT, defaults, float32")
    plain = peer_training(
        plan, path, "trl-no-checkpointing", "the same without checkpointing",
        gradient_checkpointing=False,
    )  # fmt: skip
    pairs = measure_pairs(ours_training(plan, path), [plain, trl], plan.repeats)
    what = "training rows/s, llabel / TRL"
    write(plan.results, compared("train-vs-trl", what, pairs, {"at_least": 10}), around)
    what = "peak memory of the training process, llabel / TRL"
    write(plan.results, compared("memory-vs-trl", what, pairs, {"at_most": 0.5}), around)
    print(table(plan.results))


if __name__ == "__main__":
    main()
