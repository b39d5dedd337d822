"""`python -m pipeline` is `strata`."""

from pipeline.cli.app import main

main()
