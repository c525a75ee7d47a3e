"""Runs held against each other, now and on a schedule."""

from cascade.flows.watch.compare import compare_runs
from cascade.flows.watch.reevaluation import Reevaluation, reevaluate

__all__ = ["Reevaluation", "compare_runs", "reevaluate"]
