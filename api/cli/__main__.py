"""`python -m api.cli` is `esm`."""

from api.cli import main

main()
