"""Planning: which utterances exist, how long they are, and which unit holds each of them.

In: a source, and the plan of the store if there is one. Out: a plan. `scan.py` reads the headers,
`planner.py` makes or extends the plan, `replanning.py` plans utterances again, `comparison.py`
compares the dataset with what a store already holds, and `estimate.py` states the size.
"""
