"""Tables and lists of utterances: text tables, and the forms of Kaldi, lhotse, NeMo and fairseq.

Nothing that a list names is run: entries with a pipe or a command are refused with their line.
"""
