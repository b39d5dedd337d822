"""The methods paragraph of a paper: how the scores of a sweep were made.

Every sentence follows from the results and settings of the sweep; nothing else is stated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from pipeline.config.sweep_schema import ATTENTIVE, LSTM, MLP
from pipeline.errors import counted
from pipeline.heads.networks import ATTENTION_DIM
from pipeline.probing.metrics import AGREEMENT
from pipeline.probing.report.naming import candidate_in_sentence, metric_name
from pipeline.probing.report.p_values import p_value_text
from pipeline.probing.results import NO_RATE, WEIGHTED, Sweep
from pipeline.probing.significance import N_RESAMPLES, draws_of
from pipeline.probing.trainers.sequences import MAX_GRADIENT_NORM

_STATISTICS = {
    "mean": "mean",
    "std": "standard deviation",
    "max": "maximum",
    "first": "first",
    "last": "last",
}
_LOSSES = {
    "ccc": "1 minus the concordance correlation coefficient over the batch",
    "mse": "the mean squared error",
}


def methods(sweep: Sweep) -> str:
    """Return the paragraph, one line of plain text."""
    sentences = [*method_parts(sweep), *_best_two(sweep)]
    if sweep.setup.version:
        sentences.append(f"All of this was done with Strata {sweep.setup.version}.")
    return " ".join(sentences)


def method_parts(sweep: Sweep) -> tuple[str, ...]:
    """Return features, heads, training, split and scores, each as a line of plain text.

    A part is empty where nothing is to be stated. Comparisons of sweeps state each text once.
    """
    parts = (_features, _heads, _training, _split, _scores)
    return tuple(" ".join(part(sweep)) for part in parts)


def model_name(sweep: Sweep) -> str:
    """Return the encoder with the source of its weights."""
    facts = sweep.setup.encoder
    if "model" not in facts:
        return sweep.encoder
    source = facts.get("weights")
    return str(facts["model"]) + (f" with {source} weights" if source else "")


def seeds_of(sweep: Sweep) -> list[int]:
    """Return the seeds of the heads; none if nothing was trained."""
    return sorted({head.seed for head in sweep.heads if head.lr != NO_RATE})


def listed(items: Sequence[object]) -> str:
    """Return items as a list in a sentence: a, b and c; a run of numbers as 1 to 12."""
    numbers = [item for item in items if isinstance(item, int)]
    if len(items) > 2 and numbers == list(items) == [*range(numbers[0], numbers[-1] + 1)]:
        return f"{numbers[0]} to {numbers[-1]}"
    texts = [str(item) for item in items]
    return " and ".join([", ".join(texts[:-1]), texts[-1]]) if len(texts) > 1 else "".join(texts)


def _features(sweep: Sweep) -> list[str]:
    facts, setup = sweep.setup.encoder, sweep.setup
    encoder = model_name(sweep)
    if "sha256" in facts:
        encoder += f" (SHA-256 {facts['sha256']})"
    made = [f"computed in {facts['precision']}"] if "precision" in facts else []
    made += [f"stored as {facts['dtype']}"] if "dtype" in facts else []
    made = [f", {' and '.join(made)}"] if made else []
    if "collapsed" in facts:
        what = f"one fixed weighted sum of the outputs of layers {listed(facts['collapsed'])}"
    else:
        word = "layers" if len(sweep.layers) > 1 else "layer"
        inputs = "; layer 0 is the input of the first block" if 0 in sweep.layers else ""
        what = (
            f"the outputs of {word} {listed(shown_layers(sweep))} (raw outputs of the Transformer "
            f"blocks, without a final layer norm{inputs}{_optional(sweep)})"
        )
    sentences = [f"The features are {what} of {encoder}{''.join(made)}."]
    if facts.get("weights") == "random":
        sentences.append(
            "The weights of the encoder are random, so the scores say nothing about a trained one."
        )
    if setup.n_used < setup.n_stored:
        sentences.append(
            f"Of the {setup.n_stored:,} utterances of the store, {setup.n_used:,} were selected."
        )
    return sentences


def shown_layers(sweep: Sweep) -> list[object]:
    """Return the numbers of layers, and the names of those that are no blocks."""
    labels = sweep.layer_labels
    return [layer if labels[layer].isdigit() else labels[layer] for layer in sweep.layers]


def _optional(sweep: Sweep) -> str:
    """Return what layers are that do not go by their number."""
    what = {
        "conv": "; conv is the output of the convolution stack",
        "final_norm": "; final_norm is the output of the last block after the final layer norm",
    }
    return "".join(text for name, text in what.items() if name in sweep.layer_labels.values())


def _heads(sweep: Sweep) -> list[str]:
    """Describe what heads get and what they compute."""
    recipe = sweep.setup.recipe
    describe = _HEADS.get(recipe.get("kind", ""))
    return [] if describe is None else describe(sweep, recipe)


def _pooled(recipe: dict[str, Any], what: str = "utterance") -> list[str]:
    """Describe the statistics that heads get; none if they get frames."""
    if recipe.get("head") == ATTENTIVE:
        return []
    names = [_STATISTICS.get(name, name) for name in recipe["pooling"]]
    if len(names) == 1 and recipe["pooling"][0] in ("first", "last"):
        return [f"Each {what} is represented by its {names[0]} frame."]
    end = ", concatenated." if len(names) > 1 else "."
    return [f"Each {what} is represented by the {listed(names)} of its frames{end}"]


def _head(recipe: dict[str, Any], output: str) -> str:
    """Describe a head; `output` is the description of its last layer."""
    width, head = recipe["projection"], recipe.get("head")
    first = f"linear projection to {width} dimensions"
    if head == MLP:
        first = f"hidden layer of {width} dimensions with ReLU"
    elif head == LSTM:
        first += f", two bidirectional LSTM layers of {recipe['units']:,} units in each direction"
    elif head == ATTENTIVE:
        first = (
            f"linear projection of each frame to {width} dimensions, attentive statistics pooling "
            f"over the frames of an utterance (Okabe et al., 2018) with {ATTENTION_DIM} hidden "
            "units,"
        )
    return f"A head is a {first} and a linear layer {output}"


def _utterance(sweep: Sweep, recipe: dict[str, Any]) -> list[str]:
    columns = listed(sweep.labels)
    if len(sweep.labels) > 1:
        sizes = listed([len(names) for names in sweep.classes])
        output = f"over the classes of {columns} ({sizes}); an utterance is correct if all are"
    else:
        output = f"over the {counted(len(sweep.classes[0]), 'class')} of {columns}"
    return [*_pooled(recipe), _head(recipe, f"{output}, trained with the cross-entropy.")]


def _regression(sweep: Sweep, recipe: dict[str, Any]) -> list[str]:
    loss = _LOSSES.get(recipe["loss"] or "ccc", recipe["loss"])
    return [
        *_pooled(recipe),
        _head(recipe, f"with one output for each of {listed(sweep.labels)}")
        + f", trained to minimise {loss}, with labels standardised on train.",
    ]


def _verification(sweep: Sweep, recipe: dict[str, Any]) -> list[str]:
    n_trials = sum(len(part) for part in sweep.truth)
    source = f"of the list {recipe['trials']}" if recipe["trials"] else "drawn from test"
    after = (
        "after the mean of train was subtracted and a linear discriminant analysis of the training "
        "speakers was applied"
        if recipe["head"] == "lda"
        else "after the mean of train was subtracted; nothing else is trained"
        if sweep.n_train
        else "from which no mean was subtracted; nothing is trained"
    )
    return [
        *_pooled(recipe),
        f"Two utterances are compared by the cosine of these vectors, {after}.",
        f"The test has {counted(n_trials, 'trial')}, {source}"
        + ("." if recipe["trials"] else f" with seed {recipe['sample_seed']}."),
    ]


def _frames(sweep: Sweep, recipe: dict[str, Any]) -> list[str]:
    unit = {"characters": "characters", "words": "symbols"}.get(recipe["tokens"], "symbols")
    norm = " Each frame is normalised by a layer norm without parameters." * recipe["normalize"]
    return [
        _head(
            recipe,
            f"over the {len(sweep.classes[0]):,} {unit} of train and the blank, applied to every "
            f"frame, trained with CTC and decoded greedily.{norm}",
        )
    ]


def _spans(sweep: Sweep, recipe: dict[str, Any]) -> list[str]:
    output = f"over the {counted(len(sweep.classes[0]), 'class')} of {listed(sweep.labels)}"
    return [
        *_pooled(recipe, "span"),
        "A frame belongs to the span that its centre is in.",
        _head(recipe, f"{output}, trained with the cross-entropy."),
    ]


def _framewise(sweep: Sweep, recipe: dict[str, Any]) -> list[str]:
    norm = " Each frame is normalised by a layer norm without parameters." * recipe["normalize"]
    output = f"over the {counted(len(sweep.classes[0]), 'class')} of {listed(sweep.labels)}"
    rest = (
        "frames in no span are neither trained on nor scored"
        if recipe["unlabelled"] is None
        else f"frames in no span have the class {recipe['unlabelled']}"
    )
    return [
        f"A frame has the label of the span that its centre is in; {rest}.",
        _head(recipe, f"{output}, applied to every frame, trained with the cross-entropy.{norm}"),
    ]


def _abx(sweep: Sweep, recipe: dict[str, Any]) -> list[str]:
    context = " with the same labels before and after them" * (recipe["context"] == "triphone")
    speakers = (
        ""
        if sweep.metric == "abx_within"
        else (
            f", and at most {counted(recipe['max_speakers'], 'speaker')} of X for a context and "
            "speaker of A"
        )
    )
    return [
        f"A, B and X are spans of {listed(sweep.labels)}{context}, A and X of one class and B of "
        "another; an error is an X that is closer to B than to A. The distance is the mean angle "
        "between frames along the best path of a dynamic time warping. Nothing is trained.",
        f"The comparisons use at most {counted(recipe['max_items'], 'span')} of a class, context "
        f"and speaker{speakers}, drawn with seed {recipe['sample_seed']}.",
    ]


_HEADS = {
    "spans": _spans,
    "framewise": _framewise,
    "abx": _abx,
    "utterance": _utterance,
    "regression": _regression,
    "verification": _verification,
    "frames": _frames,
}
"""Sentences about the heads of a kind of task; other kinds have none."""


_UNITS = {
    "utterance": "utterance",
    "regression": "utterance",
    "frames": "frame",
    "spans": "span",
    "framewise": "frame",
}
"""What a batch counts, by the kind of task."""


def _training(sweep: Sweep) -> list[str]:
    """Describe optimisation and selection."""
    rates = sorted({head.lr for head in sweep.heads} - {NO_RATE}, reverse=True)
    if not rates:
        if sweep.is_dev_test:
            return ["The best layer is chosen on the trials that are reported."]
        return ["The best layer is the one with the best score on dev; test is only reported."]
    recipe = sweep.setup.recipe
    sentences = []
    if any(score.layer == WEIGHTED for score in sweep.scores):
        sentences.append(
            "Candidates are each layer and a learned weighted sum of all of them (a softmax over "
            "one scalar per layer)."
        )
    rate = f"constant learning rate of {rates[0]:g}"
    if len(rates) > 1:
        rate = f"constant learning rate out of {listed([f'{rate:g}' for rate in rates])}"
    line = f"Heads are trained by Adam at a {rate}"
    if recipe.get("head") == LSTM:
        line += f", with gradients clipped to a norm of {MAX_GRADIENT_NORM:g},"
    if recipe.get("steps"):
        unit = _UNITS.get(recipe["kind"], "example")
        line += (
            f" for at most {counted(recipe['steps'], 'step')} of up to "
            f"{counted(recipe['batch'], unit)}"
        )
    if recipe.get("eval_every"):
        every = "step" if recipe["eval_every"] == 1 else f"{recipe['eval_every']:,} steps"
        line += (
            f"; every {every} they are scored on dev, and training stops "
            f"after {counted(recipe['patience'], 'evaluation')} without a better score"
            + " or a lower loss"
            * (recipe["kind"] == "frames")
        )
    selected = ["the step of each head", "the best candidate"]
    if len(rates) > 1:
        selected.insert(1, "the learning rate of each candidate")
    return [*sentences, f"{line}.", f"Dev selects {listed(selected)}; test is only reported."]


def _split(sweep: Sweep) -> list[str]:
    n_folds, setup = len(sweep.test_ids), sweep.setup
    sizes = f"{counted(sweep.n_train, 'utterance')} for training, {sweep.n_dev:,} for dev"
    if not sweep.n_train:
        sizes = f"{counted(sweep.n_dev, 'utterance')} for dev"
    tested = f"{sweep.n_test:,} for test"
    if n_folds > 1:
        line = f"{sizes} per fold (means over {n_folds} folds) and {tested} in all folds together"
    else:
        line = f"{sizes} and {tested}"
    sentences = [f"Split: {sweep.split.rstrip('.')}; {line}."]
    speakers = setup.speakers
    if "all" in speakers:
        sentences.append(
            f"The test utterances of all folds are of {counted(speakers['all'], 'speaker')} "
            f"(column {setup.speaker_column})."
        )
    elif speakers:
        parts = ("train", "dev", "test") if sweep.n_train else ("dev", "test")
        counts = listed([f"{speakers[part]:,} in {part}" for part in parts])
        line = f"Speakers (column {setup.speaker_column}): {counts}"
        if shared := speakers.get("shared"):
            line += f"; {shared:,} of the test speakers are in {' or '.join(parts[:-1])}, too"
        sentences.append(f"{line}.")
    return sentences


def _scores(sweep: Sweep) -> list[str]:
    direction = "higher" if sweep.higher_is_better else "lower"
    score = f"The score is the {metric_name(sweep.metric)} ({direction} is better)"
    if len(sweep.labels) > 1 and sweep.metric in AGREEMENT:
        score += ", averaged over the labels"
    seeds = seeds_of(sweep)
    if len(seeds) > 1:
        score += f", averaged over the seeds {listed(seeds)}"
    elif seeds:
        score += f", from seed {seeds[0]}"
    return [
        f"{score}.",
        f"Intervals are 95 % percentile bootstrap intervals over the test {sweep.groups}, with "
        f"{N_RESAMPLES:,} resamples.",
    ]


def _best_two(sweep: Sweep) -> list[str]:
    """Describe the test of the two best candidates."""
    sentences = []
    if sweep.comparison is not None:
        best = candidate_in_sentence(sweep.comparison.best, sweep)
        second = candidate_in_sentence(sweep.comparison.second, sweep)
        p, test = sweep.comparison.p_value, sweep.comparison.test
        draws = draws_of(test)
        how = "" if draws is None else f" with {draws[0]:,} {draws[1]}"
        found = "" if math.isnan(p) else f", {p_value_text(p, test)}"
        sentences.append(
            f"The two candidates with the best dev scores, {best} and {second}, were compared on "
            f"test ({test}{how}{found})."
        )
    return sentences
