"""The kinds of task: one class per utterance, or a transcript by CTC.

In: labels and splits. Out: trained heads and baselines, by the trainers. Contract: `tasks.py`.
"""
