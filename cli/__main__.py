"""`python -m streamcell.cli`, if the console script is not on the path."""

from .main import main

main()
