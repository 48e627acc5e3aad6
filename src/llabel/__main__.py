"""`python -m llabel` is `llabel`."""

from llabel.cli import main

main(prog_name="llabel")
