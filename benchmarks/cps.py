"""The cascade against three calls of the official predictor for each image: the same weights, points and masks.

    python -m benchmarks.cps [--json]

Decoder of the published models' size with random weights, images of 1024 px, three positive and three negative points.
The official side is as in PerSAM: points; points, logits; points, box, logits. Both sides end with the chosen mask
in pixels of the image, and both have all cores: ours a batch on each, the official one all for each product. The
encoder is not part of it.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial

import numpy as np
import torch
from segment_anything import SamPredictor

from benchmarks.paired import compare, publish
from cascade.backbones.sam.absorbed import AbsorbedDecoder
from cascade.backbones.sam.build import build_sam
from cascade.backbones.sam.decoder import decode
from cascade.frames import InputFrame, logits_in_frame, mask_box
from cascade.refiners.cps import Cps
from cascade.refiners.passes import run_cascade
from cascade.refiners.protocol import Row
from cascade.tasks.execution.threads import on_every_core

SIDE = 1024
POINTS = 3
OPTIONS = Cps((True, True, True), "iou", "chosen", "mask", 0.0, "previous")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--batch", type=int, default=2, help="images in one call of ours; 64 is better on a GPU")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()

    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sam = build_sam("vit_b").to(device)  # the three published models share one decoder
    with torch.no_grad():
        for network in sam.mask_decoder.output_hypernetworks_mlps:
            network.layers[-1].weight.mul_(8)  # masks that are neither empty nor full
    predictor = SamPredictor(sam)
    embeddings = torch.randn(arguments.images, 256, 64, 64, device=device)
    points = torch.rand(arguments.images, 2 * POINTS, 2) * SIDE
    labels = torch.tensor([1] * POINTS + [0] * POINTS)
    row = Row(InputFrame(SIDE, (SIDE, SIDE)), (SIDE, SIDE), np.array([0.0, 0.0, SIDE - 1.0, SIDE - 1.0]))

    def official() -> list[np.ndarray]:
        masks = []
        for embedding, own in zip(embeddings, points.numpy(), strict=True):
            predictor.original_size = predictor.input_size = (SIDE, SIDE)
            predictor.features, predictor.is_image_set = embedding[None], True
            fed = box = None
            for step in range(3):
                drawn, quality, logits = predictor.predict(own, labels.numpy(), box, fed)
                best = int(quality.argmax())
                fed = logits[best : best + 1]
                box = mask_box(drawn[best]) if step == 1 else None
            masks.append(drawn[best])
        return masks

    def ours(decoder) -> list[np.ndarray]:
        def masks(start: int) -> list[np.ndarray]:
            part = slice(start, start + arguments.batch)
            own = points[part].to(device)
            found = run_cascade(
                decoder, embeddings[part], own, labels.to(device).expand(len(own), -1), [row] * len(own), OPTIONS
            )
            last = [torch.from_numpy(cascade.steps[2].logits[cascade.steps[2].chosen])[None, None] for cascade in found]
            return [logits_in_frame(logits, row.frame, row.size)[0, 0].numpy() > 0 for logits in last]

        starts = range(0, arguments.images, arguments.batch)
        return [mask for _, drawn in on_every_core(starts, masks, device) for mask in drawn]

    ways = {
        "absorbed, fp32": partial(ours, AbsorbedDecoder(sam)),
        "plain, fp32": partial(ours, partial(decode, sam)),
        "absorbed, bf16": partial(ours, AbsorbedDecoder(sam, bf16=True)),
    }
    truth = official()
    comparisons, agreement = [], {}
    for name, way in ways.items():
        drawn = way()
        ious = [float((a & b).sum() / max(1, (a | b).sum())) for a, b in zip(drawn, truth, strict=True)]
        differing = sum(int((a != b).sum()) for a, b in zip(drawn, truth, strict=True))
        agreement[name] = {"mean_iou": float(np.mean(ious)), "least_iou": min(ious), "pixels_that_differ": differing}
        comparisons.append(
            compare(name, "SamPredictor.predict x 3", "image", way, official, arguments.images, arguments.rounds)
        )
    facts = {"images": arguments.images, "batch": arguments.batch, "rounds": arguments.rounds, "masks": agreement}
    publish(comparisons, facts, as_json=arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
