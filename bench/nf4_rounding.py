"""What rounding a model's linear layers to 4-bit NF4 changes: weights, memory, perplexity.

python bench/nf4_rounding.py --model smollm2-135m
"""

import argparse
from math import exp

import torch

from llabel.assets import resolve_model
from llabel.engine.four_bit import FourBit, round_trip, weight_bytes
from llabel.engine.model import load_model, load_tokenizer
from llabel.ladder.sample_text import SAMPLE
from llabel.quiet import quiet_libraries

CPU = torch.device("cpu")


def relative_error(weights: list[torch.Tensor], *, double_quant: bool) -> float:
    """√ Σ ‖W − NF4(W)‖² / Σ ‖W‖² over all layers."""
    off = sum(float((round_trip(w, double_quant=double_quant) - w).square().sum()) for w in weights)
    return float((off / sum(float(w.square().sum()) for w in weights)) ** 0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    folder = resolve_model(parser.parse_args().model)
    ids = torch.tensor([load_tokenizer(folder)(SAMPLE)["input_ids"]])
    with quiet_libraries(), torch.no_grad():
        forms = {"as it is": None, "nf4": FourBit(), "nf4-stored": FourBit(stored=True)}
        for name, form in forms.items():
            model = load_model(folder, CPU, "float32", four_bit=form)
            if form is None:
                head = model.get_output_embeddings()
                linear = [
                    layer.weight.data
                    for layer in model.modules()
                    if isinstance(layer, torch.nn.Linear) and layer is not head
                ]
                numbers = torch.randn(2048, 2048, generator=torch.Generator().manual_seed(0))
                for what, weights in {"its weights": linear, "normal numbers": [numbers]}.items():
                    errors = [relative_error(weights, double_quant=d) for d in (True, False)]
                    print(f"{what}: off by {errors[0]:.4f} (scales not rounded: {errors[1]:.4f})")
            loss = float(model(input_ids=ids, labels=ids).loss)
            print(
                f"{name}: {weight_bytes(model) / 2**20:.1f} MiB of weights, perplexity "
                f"{exp(loss):.2f} on {ids.shape[1]} tokens"
            )


if __name__ == "__main__":
    main()
