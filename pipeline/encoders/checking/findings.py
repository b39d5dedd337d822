"""What a self-check found, in words: one sentence each, with the value and what to do."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from pipeline.encoders.checking.comparisons import BATCH, PERMUTED, SILENCE
from pipeline.encoders.selfcheck import LEAK, SelfCheck, worst
from pipeline.errors import counted

_NOTICEABLE = 1.1
_WHERE = {
    BATCH: "in a batch",
    PERMUTED: "in another order",
    SILENCE: "with silence in their batch",
}


def refusal(found: SelfCheck) -> str | None:
    """Return why no features can be extracted with an encoder; None if they can."""
    if found.is_deterministic:
        return None
    return (
        f"{found.model} gives other features each time: a clip that is encoded again, alone, "
        f"differs by {error_text(found.repeated)}, more than the {found.tolerance:g} of rounding. "
        "Does it drop units at random, as in training (call eval()), draw samples, or keep a state "
        "between calls?"
    )


def describe_check(found: SelfCheck) -> list[str]:
    """Return what was compared, and the verdict."""
    clips = f"{counted(found.n_waveforms, 'clip')}{' (synthetic)' if found.is_synthetic else ''}"
    mates = ", ".join(f"{_WHERE[order]} {error_text(e)}" for order, e in found.mates.items())
    again = "the same bits" if found.is_repeatable else f"other bits ({error_text(found.repeated)})"
    verdict = "ok" if found.ok else "NOT ok"
    return [
        f"{found.model} in {found.precision}, {clips}, {found.audio_s:.1f} s: {verdict}; rounding "
        f"explains relative errors up to {found.tolerance:g}",
        f"clips against the same alone, in fp32: {mates}; encoded again: {again}",
    ]


def error_text(value: float | None) -> str:
    """Return an error, or a value, as text."""
    if value is None:
        return "not finite"
    return "not finite in one" if value == sys.float_info.max else f"{value:.1e}"


def findings(found: SelfCheck) -> list[str]:
    """Return what the user should know, without the errors that are within the tolerance."""
    if found.n_silent == found.n_waveforms:
        return [
            f"all {found.n_waveforms} clips are silent, so that their errors say nothing about "
            f"{found.model}; take other clips"
        ]
    why_not = refusal(found)
    return [
        *([why_not] if why_not else _about_batches(found)),
        *_about_precision(found),
        *_about_values(found),
    ]


def _about_batches(found: SelfCheck) -> Iterator[str]:
    if found.leaks:
        yield f"{_leak(found)}; its clips are encoded one by one{_cost(found.slowdown)}"
    elif max(worst(found.mates.values()), worst(found.alone_vs_batch)) > _bound(found):
        errors = max(worst(found.mates.values()), worst(found.alone_vs_batch))
        yield (
            f"clips in a batch differ by {error_text(errors)} from the same clips alone, more than "
            f"the usual {_bound(found):g} of rounding, but too little for a dependence on other "
            "clips"
        )
    if not found.is_repeatable:
        yield (
            f"the same clips encoded again differ by {error_text(found.repeated)}: a resumed or "
            "repeated run agrees within rounding, not to the last bit"
        )


def _cost(slowdown: float | None) -> str:
    if slowdown is None:
        return ""
    if slowdown < _NOTICEABLE:
        return ", which takes about as long as in batches"
    return f", about {slowdown:.1f} times slower than in batches"


def _leak(found: SelfCheck) -> str:
    """Return how far the other clips of a batch change a clip."""
    measured = {order: error for order, error in found.mates.items() if error is not None}
    named = [f"{error_text(e)} {_WHERE[order]}" for order, e in measured.items() if e > LEAK]
    layer = "" if found.mates_layer is None else f", most in layer {found.mates_layer}"
    if not named:
        return (
            f"in {found.precision} the other clips of a batch change the features of "
            f"{found.model} by {error_text(worst(found.alone_vs_batch))}, more than the "
            f"{found.tolerance:g} of rounding"
        )
    return (
        f"the other clips of a batch change the features of {found.model} by more than rounding: "
        f"relative errors against the same clips alone are {', '.join(named)}{layer}"
    )


def _about_precision(found: SelfCheck) -> Iterator[str]:
    error = worst(found.precision_vs_fp32)
    if error > found.tolerance and error < sys.float_info.max:
        layer = found.layers[list(found.precision_vs_fp32).index(error)]
        yield (
            f"{found.precision} changes layer {layer} by {error_text(error)} against fp32, more "
            f"than the usual {found.tolerance:g}; use extract.precision=fp32 for exact features"
        )


def _about_values(found: SelfCheck) -> Iterator[str]:
    if found.n_unstorable:
        yield _beyond(found, found.largest_fp32, found.n_unstorable, in_fp32=True)
    elif found.n_misfits:
        yield _beyond(found, found.largest, found.n_misfits, in_fp32=False)
    if found.constant:
        layers = ", ".join(map(str, found.constant))
        noun, verb = ("layers", "are") if len(found.constant) > 1 else ("layer", "is")
        yield (
            f"{noun} {layers} {verb} constant: every frame of every clip has the same values. Are "
            "the weights those of this model?"
        )


def _beyond(
    found: SelfCheck, largest: tuple[float | None, ...], n_clips: int, *, in_fp32: bool
) -> str:
    """Say which values cannot be stored, and what happens to such utterances."""
    clips = f"in {n_clips} of {counted(found.n_waveforms, 'clip')}"
    pairs = list(zip(found.layers, largest, strict=True))
    not_finite = [layer for layer, value in pairs if value is None]
    if not_finite:
        what = f"layer {not_finite[0]} has values that are not finite (NaN or infinity) {clips}"
    else:
        layer, value = max(pairs, key=lambda pair: pair[1] or 0.0)
        what = (
            f"layer {layer} has values up to {value:.1e}, beyond {found.dtype} "
            f"({found.largest_stored:g}), {clips}"
        )
    if not in_fp32:
        return (
            f"{what} in {found.precision}: such utterances are encoded again in fp32, which takes "
            "longer; extract.precision=bf16 or fp32 avoids it"
        )
    if not_finite:
        return (
            f"{what}, even in fp32: such utterances are quarantined. Are the weights damaged, or "
            "those of another model?"
        )
    return (
        f"{what}, even in fp32: such utterances are quarantined; use extract.dtype=bfloat16 or "
        "float32"
    )


def _bound(found: SelfCheck) -> float:
    return found.tolerance if found.precision == "fp32" else LEAK
