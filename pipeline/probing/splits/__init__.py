"""Folds of a sweep: which utterances are trained on, select and test.

In: a store, the labels of its utterances, settings. Out: a `Split`. `making.py` decides,
`corpus.py` finds the corpus's own split, `stratified.py` draws, `speakers.py` finds the column of
the speakers, `leakage.py` looks for speakers, recordings and clips in more than one part,
`alike.py` warns of classes that are spelt alike, `few_speakers.py` of few test speakers,
`shares.py` takes shares of train, and `trials.py` pairs test utterances for verification.
"""

from pipeline.probing.splits.making import Split, make_split

__all__ = ["Split", "make_split"]
