"""`python -m pipeline` is `strata`."""

from pipeline.cli import main

main()
