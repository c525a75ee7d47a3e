"""CLIP's vision tower against open_clip's own forward pass in fp32: the same random weights, the same images.

python -m benchmarks.clip [--backbone ViT-L-14-336] [--side 518] [--batch 1] [--json]

The peer keeps its tokens batch first, as open_clip builds it.
"""

from __future__ import annotations

import argparse
import sys

import open_clip
import torch

from benchmarks.paired import compare, publish
from cascade.backbones.clip.backbone import build_clip, image_tokens
from cascade.tasks.execution.networks import clip_config

LAYERS = (6, 12, 18, 24)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="ViT-L-14-336")
    parser.add_argument("--side", type=int, default=518)
    parser.add_argument("--batch", type=int, default=1, help="images in one pass; the pipeline takes one on a CPU")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()

    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = clip_config(arguments.backbone)
    vision = dict(config["vision_cfg"]) | {"image_size": arguments.side}
    theirs = open_clip.CLIP(config["embed_dim"], vision, config["text_cfg"]).to(device).eval().requires_grad_(False)
    clip = build_clip(config, theirs.state_dict(), arguments.side, quick_gelu=False).to(device)
    layers = tuple(layer for layer in LAYERS if layer <= vision["layers"])
    images = torch.randn(arguments.batch, 3, arguments.side, arguments.side, device=device)

    def open_clips() -> object:
        return image_tokens(theirs, images, layers)

    truth = image_tokens(theirs, images, layers).blocks[-1]
    comparisons, parity = [], {}
    for name, bf16 in (("sequence first, fp32", False), ("sequence first, bf16", True)):

        def ours(bf16: bool = bf16) -> object:
            return image_tokens(clip, images, layers, bf16=bf16)

        error = (image_tokens(clip, images, layers, bf16=bf16).blocks[-1] - truth).abs().max()
        parity[name] = {"largest_difference": float(error), "standard_deviation": float(truth.std())}
        peer = "as open_clip runs it, fp32"
        comparisons.append(compare(name, peer, "image", ours, open_clips, arguments.batch, arguments.rounds))
    facts = {"backbone": arguments.backbone, "side": arguments.side, "batch": arguments.batch}
    publish(comparisons, facts | {"rounds": arguments.rounds, "parity": parity}, as_json=arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
