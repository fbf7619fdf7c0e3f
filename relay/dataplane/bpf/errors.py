"""Why the kernel's data path is not to be had."""

from host.errors import OperatorError


class BpfUnavailableError(OperatorError):
    """This machine cannot run the programs: a package, a permission or a feature of the kernel is missing."""


class AbiMismatchError(OperatorError):
    """What is pinned was loaded by another version of relayctl."""


class ForeignProgramError(OperatorError):
    """An interface has an XDP program of somebody else."""
