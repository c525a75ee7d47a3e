"""What the small SAM learns: a decoder pass over a batch of images, and its losses."""

from __future__ import annotations

import torch
from segment_anything.modeling import Sam
from torch import Tensor, nn
from torch.nn import functional as F

from cascade.backbones.sam.build import PATCH
from cascade.backbones.sam.decoder import decode_tokens
from cascade.tasks.training.initialisation import compare_with_neighbours, wave_positions, whiten_patches


def attend_by_position(sam: Sam) -> None:
    """Starts the decoder's cross attentions as a match of positions.

    Queries and keys carry the same Fourier features of their position. With one projection for both, a click
    attends to the cells around it, and these cells to the click, before anything is learned; independent
    projections have to find this alignment first, which took most of a short training.
    """
    transformer = sam.mask_decoder.transformer
    attentions = [transformer.final_attn_token_to_image]
    for layer in transformer.layers:
        attentions += [layer.cross_attn_token_to_image, layer.cross_attn_image_to_token]
    for attention in attentions:
        # A gain of 1.3 gives logits of 3 to 10 where positions coincide: D/2 features of unit power, half of
        # them kept by the projection, shared among heads and divided by the root of a head's width.
        nn.init.orthogonal_(attention.q_proj.weight, gain=1.3)
        with torch.no_grad():
            attention.k_proj.weight.copy_(attention.q_proj.weight)
            attention.q_proj.bias.zero_()
            attention.k_proj.bias.zero_()


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
        attend_by_position(sam)
        encoder = sam.image_encoder
        whiten_patches(encoder.patch_embed.proj)
        with torch.no_grad():
            _, rows, columns, width = encoder.pos_embed.shape
            encoder.pos_embed.copy_(wave_positions(rows, columns, width).reshape(1, rows, columns, width))
        for block in encoder.blocks:
            compare_with_neighbours(block.attn.qkv.weight, block.attn.proj)

    def embed(self, images: Tensor, corner: tuple[int, int]) -> Tensor:
        """Embeddings ``[B, C, g, g]`` of inputs ``[B, 3, 16 g, 16 g]``, which may be windows of whole inputs.

        A window takes the positions of the cells from ``corner`` (row, column) on.
        """
        encoder = self.sam.image_encoder
        tokens = encoder.patch_embed(images)
        rows, columns = tokens.shape[1:3]
        tokens = tokens + encoder.pos_embed[:, corner[0] : corner[0] + rows, corner[1] : corner[1] + columns]
        for block in encoder.blocks:
            tokens = block(tokens)
        embedded: Tensor = encoder.neck(tokens.permute(0, 3, 1, 2))
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
    shift = PATCH * points[0].new_tensor([corner[1], corner[0]])
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
