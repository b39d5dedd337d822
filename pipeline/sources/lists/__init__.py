"""Lists of utterances in the forms of other toolkits: Kaldi, lhotse, NeMo and fairseq.

Nothing that a list names is run: entries with a pipe or a command are refused with their line.
"""
