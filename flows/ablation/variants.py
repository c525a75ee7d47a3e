"""The DAG of an ablation: the variants in turn, each stage of each distinct key once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict

from cascade.configs.settings import Settings
from cascade.flows.ablation.state import Ablation, VariantState
from cascade.flows.engines.evaluate import Executor, Reporter, StageResult, evaluate, plan, stages_of
from cascade.flows.run.observer import Observer
from cascade.flows.run.prepare import Prepared, prepare, require_metrics
from cascade.flows.run.reading import Images, asks_in_words, read_images
from cascade.storage.errors import PipelineError
from cascade.storage.keys import digest_of
from cascade.tasks.stage import Run, Stage

Candidates = Mapping[str, Prepared | PipelineError]
"""By variant: what may start, or why it cannot."""

_Node = tuple[str, str]


def prepare_variants(ablation: Ablation, settings: Settings) -> Candidates:
    """Everything that can be refused before a stage runs; the images of a dataset are read once. Nothing is written.

    Raises:
        PipelineError: no variant can start; the error of the first.
    """
    read: dict[tuple[str, bool], Images] = {}
    candidates: dict[str, Prepared | PipelineError] = {}
    for variant in ablation.variants:
        experiment = variant.experiment
        dataset = experiment.dataset.model_dump_json(), asks_in_words(experiment)
        try:
            if dataset not in read:
                read[dataset] = read_images(experiment, ablation.store)
            require_metrics(read[dataset].manifest, "a table of variants")
            prepared = prepare(
                experiment,
                ablation.store,
                settings,
                allow_leak=ablation.allow_leak,
                images=read[dataset],
            )
            plan(prepared.run)
            candidates[variant.name] = prepared
        except PipelineError as error:
            candidates[variant.name] = error
    errors = [each for each in candidates.values() if isinstance(each, PipelineError)]
    if len(errors) == len(candidates):
        raise errors[0]
    return candidates


def run_variants(
    ablation: Ablation,
    candidates: Candidates,
    execute: Executor,
    told: Observer,
    on_change: Callable[[Ablation], None] = lambda state: None,
) -> Ablation:
    """Run every variant; one that fails is noted, and the rest goes on.

    What an earlier variant of this ablation has found complete is not even looked up again, and what has failed once
    is not tried again.

    Args:
        ablation: with the state to start from; a variant that is done already finds all its results in the store.
        candidates: from :func:`prepare_variants`.
        execute: the engine.
        told: told of every variant and every stage that runs.
        on_change: called with the new state after each variant.
    """
    finished: dict[_Node, StageResult] = {}
    broken: dict[_Node, str] = {}
    for variant in ablation.variants:
        told.variant(variant.name)
        candidate = candidates[variant.name]
        if isinstance(candidate, PipelineError):
            ended = _failed(variant, str(candidate))
        else:
            ended = _run_variant(variant, candidate.run, execute, told, finished, broken)
        ablation = ablation.updated(ended)
        on_change(ablation)
    return ablation


def _run_variant(
    variant: VariantState,
    run: Run,
    execute: Executor,
    reporter: Reporter,
    finished: dict[_Node, StageResult],
    broken: dict[_Node, str],
) -> VariantState:
    nodes = {stage.name: _node(run, stage) for stage in stages_of(run)}
    for node in nodes.values():
        if node in broken:
            return _failed(variant, broken[node])
    known = {name: finished[node] for name, node in nodes.items() if node in finished}
    try:
        results = evaluate(run, execute, reporter, known)
    except Exception as error:  # whatever it is, a night's work of the other variants must not end with it
        line = " ".join(str(error).split()) or type(error).__name__
        guilty = _first_incomplete(run)
        if guilty is not None:
            broken[nodes[guilty.name]] = line
        return _failed(variant, line)
    finished |= {nodes[result.stage]: result for result in results}
    worked = [asdict(result) for result in results if result.computed and result is not known.get(result.stage)]
    return variant.model_copy(update={"state": "done", "error": None, "stages": (*variant.stages, *worked)})


def _failed(variant: VariantState, line: str) -> VariantState:
    return variant.model_copy(update={"state": "failed", "error": line})


def _node(run: Run, stage: Stage) -> _Node:
    """A key and the items that a run needs of it."""
    return stage.key(run).digest, digest_of([item.id for item in stage.items(run)])


def _first_incomplete(run: Run) -> Stage | None:
    for stage in stages_of(run):
        if run.artefact(stage.key(run)).missing(item.id for item in stage.items(run)):
            return stage
    return None
