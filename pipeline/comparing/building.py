"""A comparison, made of finished sweeps.

Sweeps of one task, label and metric are compared. Those with the same test units are tested in
pairs, each by its best candidate on dev. A sweep that is a part of another one is left out.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from itertools import combinations

from pipeline.comparing.evaluating import can_evaluate, fingerprint
from pipeline.comparing.heads import compare_heads, head_order
from pipeline.comparing.naming import (
    SEPARATOR,
    EncoderKey,
    encoder_key,
    encoder_names,
    percent,
    unique_names,
)
from pipeline.comparing.pairs import corrected, paired_tests
from pipeline.comparing.reading import StoredSweep
from pipeline.comparing.results import Comparison, PairTest, TaskComparison, Variant
from pipeline.comparing.subsets import LeftOut, without_parts
from pipeline.errors import ConfigError, counted, first_few
from pipeline.probing.report.methods import listed, shown_layers
from pipeline.probing.results import Sweep

MAX_ALL_PAIRS = 12
"""Largest number of variants of which every pair is tested; of more, each against the best on
dev."""


def compare(stored: Sequence[StoredSweep]) -> Comparison:
    """Compare finished sweeps.

    Args:
        stored: At least one.

    Raises:
        ConfigError: There is none, or the predictions of one do not give its scores.
    """
    if not stored:
        raise ConfigError("there are no sweeps to compare")
    stored, left_out = without_parts(stored)
    keys = _encoder_keys(stored)
    names = _names_of_encoders(stored, keys)
    by_task: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for at, item in enumerate(stored):
        by_task[_task_key(item.sweep)].append(at)
    tasks = unique_names(
        list(by_task), lambda key: key[0], lambda key: "+".join(key[2:]), lambda key: key[1]
    )
    order = list(dict.fromkeys(keys))
    drafts = {
        key: _drafts([(stored[i], keys[i], names[keys[i]]) for i in which], order)
        for key, which in by_task.items()
    }
    has_heads = any(len({draft.head for draft in found}) > 1 for found in drafts.values())
    return _whole(
        [
            _compare_task(
                tasks[key],
                _named(found, has_heads),
                [item for item in left_out if _task_key(item.part.sweep) == key],
            )
            for key, found in drafts.items()
        ],
        [names[key] for key in order],
    )


def _task_key(sweep: Sweep) -> tuple[str, ...]:
    return sweep.task, sweep.metric, *sweep.labels


def _whole(tasks: Sequence[TaskComparison], encoders: Sequence[str]) -> Comparison:
    variants = [variant for task in tasks for variant in task.variants]
    return Comparison(
        tasks=tuple(tasks),
        encoders=tuple(encoders),
        heads=tuple(sorted({variant.head for variant in variants}, key=head_order)),
        fractions=tuple(sorted({variant.fraction for variant in variants})),
        warnings=_warnings(tasks),
        version=version("strata-speech"),
    )


def _encoder_keys(stored: Sequence[StoredSweep]) -> list[EncoderKey]:
    """Return the key of the encoder of each sweep.

    Stores of the same facts that are swept alike have a key each: they are compared. Other stores
    of these facts, as of other corpora for other tasks, have the key of the facts.
    """
    keys, stores = [encoder_key(item.sweep) for item in stored], [item.store for item in stored]
    alike: dict[tuple[object, ...], set[str]] = defaultdict(set)
    for key, item, store in zip(keys, stored, stores, strict=True):
        alike[key, *_kind(item.sweep)].add(store)
    compared = {(found[0], store) for found, own in alike.items() if len(own) > 1 for store in own}
    return [
        (*key, ("store", store)) if (key, store) in compared else key
        for key, store in zip(keys, stores, strict=True)
    ]


def _kind(sweep: Sweep) -> tuple[object, ...]:
    """Return what two sweeps of a comparison have in common, if only the encoder differs."""
    head = sweep.setup.recipe.get("head")
    return sweep.task, sweep.metric, sweep.labels, head, sweep.setup.fraction


def _names_of_encoders(
    stored: Sequence[StoredSweep], keys: Sequence[EncoderKey]
) -> dict[EncoderKey, str]:
    sweeps: dict[EncoderKey, list[Sweep]] = defaultdict(list)
    for key, item in zip(keys, stored, strict=True):
        sweeps[key].append(item.sweep)
    return encoder_names(sweeps)


def _drafts(
    stored: Sequence[tuple[StoredSweep, EncoderKey, str]], order: Sequence[EncoderKey]
) -> list[Variant]:
    """Return the sweeps of a task by encoder, head and share of train, named by their encoders.

    Args:
        stored: Sweeps, with the key and the name of their encoder.
        order: Keys of all encoders, in the order in which they are shown.
    """
    drafts = sorted(
        ((order.index(key), _draft(item, encoder)) for item, key, encoder in stored),
        key=lambda draft: (draft[0], head_order(draft[1].head), -draft[1].fraction),
    )
    return [draft for _, draft in drafts]


def _compare_task(
    name: str, variants: tuple[Variant, ...], left_out: Sequence[LeftOut]
) -> TaskComparison:
    """Compare the sweeps of a task.

    Args:
        name: Name of the task within the comparison.
        variants: Its sweeps.
        left_out: Sweeps of the task that are a part of others.
    """
    sweep = variants[0].sweep
    task = TaskComparison(
        task=sweep.task,
        labels=sweep.labels,
        metric=sweep.metric,
        higher_is_better=sweep.higher_is_better,
        name=name,
        variants=variants,
    )
    pairs = _test_pairs(task)
    notes = (*(item.note for item in left_out), *_notes(task, len(pairs)))
    return replace(task, pairs=pairs, head_changes=compare_heads(task), notes=notes)


def _draft(item: StoredSweep, encoder: str) -> Variant:
    """Return a variant that has the name of its encoder."""
    sweep = item.sweep
    return Variant(
        name=encoder,
        encoder=encoder,
        head=str(sweep.setup.recipe.get("head", "linear")),
        fraction=float(sweep.setup.fraction),
        folder=str(item.folder),
        sweep=sweep,
        test_set=fingerprint(sweep) if can_evaluate(sweep) else None,
    )


def _named(variants: Sequence[Variant], has_heads: bool) -> tuple[Variant, ...]:
    """Give variants names that say what differs: encoder, head, share of train, folder.

    Args:
        variants: The variants of a task.
        has_heads: Whether names have the head, which some task of the comparison has several of.
    """
    largest = max(variant.fraction for variant in variants)

    def name_of(at: int) -> str:
        variant = variants[at]
        parts = [variant.encoder, *([variant.head] if has_heads else [])]
        if variant.fraction != largest:
            parts.append(f"{percent(variant.fraction)} of train")
        return SEPARATOR.join(parts)

    def folder_of(at: int) -> str:
        return variants[at].folder.rstrip("/").rpartition("/")[2]

    names = unique_names(range(len(variants)), name_of, folder_of, separator=SEPARATOR)
    counts = Counter(map(name_of, range(len(variants))))
    return tuple(
        replace(
            variant,
            name=names[at],
            setting=folder_of(at) if counts[name_of(at)] > 1 else "",
        )
        for at, variant in enumerate(variants)
    )


def _test_pairs(task: TaskComparison) -> tuple[PairTest, ...]:
    """Test the best candidates of variants with the largest share of train in pairs."""
    groups: dict[tuple[str, int], list[Variant]] = defaultdict(list)
    for variant in task.full:
        if variant.test_set is not None:
            n_seeds = len({head.seed for head in variant.sweep.heads})
            groups[variant.test_set, n_seeds].append(variant)
    drafts: list[PairTest] = []
    for variants in groups.values():
        drafts += _test_group(task, variants)
    return tuple(corrected(drafts))


def _test_group(task: TaskComparison, variants: Sequence[Variant]) -> list[PairTest]:
    """Test variants with the same test units; the p-values are not corrected yet."""
    if len(variants) < 2:
        return []
    wanted = list(combinations(range(len(variants)), 2))
    if len(variants) > MAX_ALL_PAIRS:
        sign = 1 if task.higher_is_better else -1
        best = max(range(len(variants)), key=lambda i: sign * variants[i].best.dev)
        wanted = [(best, other) for other in range(len(variants)) if other != best]
    return paired_tests([(variant, variant.best.layer) for variant in variants], wanted)


def _notes(task: TaskComparison, n_pairs: int) -> tuple[str, ...]:
    """Return what was not tested in pairs, and why."""
    notes = []
    unknown = [variant.name for variant in task.full if variant.test_set is None]
    if unknown:
        notes.append(
            f"not tested in pairs: {first_few(unknown)}. Their sweep.json does not state what was "
            "tested; run the same `strata sweep` again (its heads are cached)"
        )
    sizes = Counter(
        (variant.test_set, len({head.seed for head in variant.sweep.heads}))
        for variant in task.full
        if variant.test_set is not None
    )
    if len({test_set for test_set, _ in sizes}) > 1:
        notes.append(
            f"the {counted(sum(sizes.values()), 'sweep')} have {len(sizes)} different test sets "
            "(other utterances, labels or split): scores of different test sets are not tested "
            "against each other, and cannot be compared utterance by utterance"
        )
    elif len(sizes) > 1:
        notes.append(
            "sweeps with other numbers of seeds are not tested against each other; give all of "
            "them the same seeds="
        )
    layers = {variant.name: listed(shown_layers(variant.sweep)) for variant in task.full}
    if len(set(layers.values())) > 1:
        shown = "; ".join(f"{name}: {numbers}" for name, numbers in layers.items())
        notes.append(
            f"the sweeps are of different layers ({shown}): the best layer and the weighted sum of "
            "each are those of its own layers"
        )
    n_all = len(task.full) * (len(task.full) - 1) // 2
    if len(task.full) > MAX_ALL_PAIRS and n_pairs < n_all:
        notes.append(
            f"of more than {MAX_ALL_PAIRS} variants, each is tested against the best on dev only"
        )
    return tuple(notes)


def _warnings(tasks: Sequence[TaskComparison]) -> tuple[str, ...]:
    """Return the warnings of the sweeps, each with the variants that it is of."""
    found: dict[str, list[str]] = defaultdict(list)
    n_variants = sum(len(task.variants) for task in tasks)
    for task in tasks:
        for variant in task.variants:
            for warning in variant.sweep.warnings:
                name = variant.name if len(tasks) == 1 else f"{task.name}: {variant.name}"
                found[warning].append(name)
    return tuple(
        warning if len(names) == n_variants else f"{warning} ({first_few(names)})"
        for warning, names in found.items()
    )
