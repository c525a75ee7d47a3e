"""One evaluation of an experiment, from its images to its folder and its row of the history."""

from cascade.flows.run.experiment import Evaluation, run_experiment
from cascade.flows.run.observer import Observer

__all__ = ["Evaluation", "Observer", "run_experiment"]
