"""What the small SAM learns: a decoder pass over a batch of images, and its losses."""

from __future__ import annotations

import torch
from segment_anything.modeling import Sam
from torch import Tensor, nn
from torch.nn import functional as F

from cascade.backbones.sam.decoder import decode_tokens
from cascade.tasks.training.decoder_start import part_channels, start_as_match


class Trainee(nn.Module):
    """A SAM and a training-only head that draws targets and their outlines without any prompt.

    The head gives the encoder a dense signal from the first step on, long before prompts begin to work; it is
    not exported.

    Attributes:
        sam: the network.
        outline: 1x1 convolution from the embedding to two maps of 4x4 sub-cells per cell.
    """

    def __init__(self, sam: Sam) -> None:
        super().__init__()
        self.sam = sam
        self.outline = nn.Conv2d(sam.prompt_encoder.embed_dim, 2 * 16, 1)
        start_as_match(sam)
        part_channels(sam.image_encoder.neck)

    def embed(self, images: Tensor) -> Tensor:
        """Embeddings ``[B, C, g, g]`` of inputs ``[B, 3, 8 g, 8 g]`` in [−1, 1], which may be windows of whole inputs.

        The trunk runs without a gradient.
        """
        encoder = self.sam.image_encoder
        with torch.inference_mode():
            levels = encoder.levels(images)
        embedded: Tensor = encoder.embedded([level.clone() for level in levels])
        return embedded

    def outline_loss(self, embeddings: Tensor, targets: Tensor) -> Tensor:
        """Weighted cross entropy of both maps against target masks ``[B, T, h, h]``."""
        drawn = F.pixel_shuffle(self.outline(embeddings), 4).float()
        grown = F.max_pool2d(targets, 3, 1, 1)
        shrunk = -F.max_pool2d(-targets, 3, 1, 1)
        truth = torch.stack([targets.amax(dim=1), (grown - shrunk).amax(dim=1)], dim=1)
        return F.binary_cross_entropy_with_logits(drawn, truth, pos_weight=drawn.new_tensor(3.0))


def affinity_loss(embeddings: Tensor, targets: Tensor, generator: torch.Generator) -> Tensor:
    """How well the cosine to one cell of a target tells which cells belong to the target.

    It asks of the embedding itself what a click asks of the decoder, and what PPG asks of SAM's features.

    Args:
        embeddings: ``[B, C, g, g]``.
        targets: ``[B, T, 4g, 4g]`` in {0, 1}.
        generator: draws the cells.
    """
    share = F.avg_pool2d(targets, 4).flatten(2)
    picks = (share.flatten(0, 1) + 1e-6).cpu().multinomial(1, generator=generator).to(targets.device)
    cells = F.normalize(embeddings.float().flatten(2), dim=1)
    asked = cells.gather(2, picks.reshape(len(cells), 1, -1).expand(-1, cells.shape[1], -1))
    logits = 12 * (torch.einsum("bct,bcn->btn", asked, cells) - 0.5)
    count = share.sum(dim=2, keepdim=True).clamp_min(1)
    weight = 1 + (share > 0.5) * (((share.shape[2] - count) / count).clamp(1, 30) - 1)
    entropy = F.binary_cross_entropy_with_logits(logits, share, weight=weight, reduction="none")
    return (entropy.sum(dim=2) / weight.sum(dim=2)).mean()


def decode(
    sam: Sam,
    embeddings: Tensor,
    points: tuple[Tensor, Tensor],
    boxes: Tensor | None,
    logits: Tensor | None,
    corner: tuple[int, int] = (0, 0),
) -> tuple[Tensor, Tensor]:
    """All four mask tokens for one prompt set per row, by the pass that the cascade uses.

    Args:
        sam: the network.
        embeddings: ``[N, C, g, g]``, of a whole input or of a window of it.
        points: ``[N, K, 2]`` (x, y) in pixels of the window and labels ``[N, K]``; K may be 0 when boxes are given.
        boxes: ``[N, 4]`` or None, in pixels of the window.
        logits: ``[N, 1, 4g, 4g]`` fed back, or None.
        corner: row and column of the window's first cell.

    Returns:
        Low-resolution logits ``[N, 4, 4g, 4g]`` and predicted IoU ``[N, 4]``.
    """
    cell = sam.prompt_encoder.input_image_size[0] // sam.prompt_encoder.image_embedding_size[0]
    shift = cell * points[0].new_tensor([corner[1], corner[0]])
    boxes = None if boxes is None else boxes + shift.repeat(2)
    decoded = decode_tokens(
        sam,
        embeddings,
        points[0] + shift,
        points[1],
        boxes=boxes,
        mask_input=logits,
        kept=slice(None),
        corner=corner,
    )
    return decoded.low_res_logits, decoded.predicted_iou


def coarse_target(masks: Tensor, side: int) -> Tensor:
    """Binary ``[N, side, side]`` targets: a low-res cell counts when 40 % of it is covered; none for an empty mask."""
    covered = F.adaptive_avg_pool2d(masks.float()[:, None], side)[:, 0]
    # A thread too thin for any cell keeps its best ones rather than vanish.
    best = covered.amax(dim=(1, 2), keepdim=True)
    return ((covered >= torch.minimum(best * 0.8, torch.full_like(best, 0.4))) & (covered > 0)).float()


def mask_losses(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """20 focal + dice per mask, and the true IoU per mask; both ``[N, 4]``.

    As in SAM, appendix A, except that foreground pixels weigh more in small masks: most defects cover less than
    a hundredth of the image, where the published weights leave almost no gradient.
    """
    truth = target[:, None].expand_as(logits)
    entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    chance = logits.sigmoid()
    hit = chance * truth + (1 - chance) * (1 - truth)
    share = truth.mean(dim=(2, 3), keepdim=True).clamp(1e-4, 0.5)
    weight = 0.5 + truth * (0.5 * ((1 - share) / share).sqrt().clamp(max=6) - 0.5)
    focal = (weight * (1 - hit) ** 2 * entropy).mean(dim=(2, 3))
    overlap = (chance * truth).sum(dim=(2, 3))
    dice = 1 - (2 * overlap + 1) / (chance.sum(dim=(2, 3)) + truth.sum(dim=(2, 3)) + 1)
    hard = logits.detach() > 0
    union = (hard | (truth > 0)).sum(dim=(2, 3)).clamp_min(1)
    iou = (hard & (truth > 0)).sum(dim=(2, 3)) / union
    return 20 * focal + dice, iou


def total_loss(logits: Tensor, predicted: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Loss of one decoder pass and the true IoU ``[N]`` of the mask that predicted IoU selects.

    Of the three ambiguity masks the best one learns, the others a little so that none dies; the single-mask
    token always learns; predicted IoU is regressed for all, and has to rank the three as their true IoU does. Where
    there is nothing to segment only predicted IoU learns: that it is nought.
    """
    losses, iou = mask_losses(logits, target)
    loss = losses[:, 1:].amin(dim=1) + 0.1 * losses[:, 1:].mean(dim=1) + 0.4 * losses[:, 0]
    loss = loss * target.flatten(1).any(dim=1)
    loss = loss + F.mse_loss(predicted, iou, reduction="none").mean(dim=1) * 5
    order = F.softmax(20 * iou[:, 1:], dim=1)
    loss = loss + 0.4 * F.cross_entropy(10 * predicted[:, 1:], order, reduction="none")
    chosen = predicted[:, 1:].argmax(dim=1, keepdim=True)
    return loss.mean(), iou[:, 1:].gather(1, chosen)[:, 0]


def best_mask(logits: Tensor, predicted: Tensor) -> Tensor:
    """Logits ``[N, 1, h, h]`` of the ambiguity mask with the highest predicted IoU."""
    chosen = predicted[:, 1:].argmax(dim=1)
    return logits[torch.arange(len(logits), device=logits.device), 1 + chosen][:, None]
