"""The networks and the command line are those of the tests of ``flows``."""

from tests.flows.conftest import cli, weights

__all__ = ["cli", "weights"]
