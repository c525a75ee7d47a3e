"""SAM's image encoder against the official forward pass: the same random weights, the same inputs.

python -m benchmarks.encoder [--backbone vit_b] [--json]

Compiling (``runtime.compile``) takes about a minute and is not counted; on a CPU it needs a C++ compiler.
"""

from __future__ import annotations

import argparse
import sys

import torch

from benchmarks.paired import compare, publish
from cascade.backbones.sam.build import SAM_MODELS, build_sam, input_side
from cascade.backbones.sam.image import embed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", choices=SAM_MODELS, default="vit_b")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()

    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sam = build_sam(arguments.backbone).to(device)
    with torch.no_grad():
        for name, value in sam.image_encoder.named_parameters():
            if "rel_pos" in name or "pos_embed" in name:
                value.normal_(std=0.3)
    side = input_side(arguments.backbone)
    inputs = torch.randn(arguments.batch, 3, side, side, device=device)

    def official() -> torch.Tensor:
        with torch.inference_mode():
            return sam.image_encoder(inputs)

    truth = official()
    comparisons, parity = [], {}
    for name, bf16, compiled in (
        ("fused, fp32", False, False),
        ("fused, bf16", True, False),
        ("fused and compiled, fp32", False, True),
        ("fused and compiled, bf16", True, True),
    ):

        def ours(bf16: bool = bf16, compiled: bool = compiled) -> torch.Tensor:
            return embed(sam, inputs, bf16=bf16, compiled=compiled)

        error = (ours() - truth).abs().max()
        parity[name] = {"largest_difference": float(error), "standard_deviation": float(truth.std())}
        comparisons.append(
            compare(name, "ImageEncoderViT, fp32", "image", ours, official, arguments.batch, arguments.rounds)
        )
    facts = {"backbone": arguments.backbone, "batch": arguments.batch, "rounds": arguments.rounds, "parity": parity}
    publish(comparisons, facts, as_json=arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
