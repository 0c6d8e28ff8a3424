"""The `jaxnn` command line."""

from jaxnn.cli.parser import main as main
