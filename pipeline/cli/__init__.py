"""The command `strata`.

In: the command line. Out: the answer on stdout, messages and progress on stderr, and an exit code.
`app.py`, `transforms.py` and `fidelity.py` have the verbs, `options.py` their shared options,
`progress.py` the observers on the terminal, `tables.py` the printed results, `output.py` exit
codes, errors, JSON and signals. No other package imports this one.
"""


def main() -> None:
    """Run the command; the entry point of installations made before `pipeline.cli.app` existed."""
    from pipeline.cli.app import main as run

    run()
