"""Grids of experiments."""

from cascade.flows.ablation.ablate import EndedAblation, define_ablation, resume_ablation, run_ablation
from cascade.flows.ablation.plan import plan_ablation

__all__ = ["EndedAblation", "define_ablation", "plan_ablation", "resume_ablation", "run_ablation"]
