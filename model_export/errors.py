"""What can go wrong on the way from a checkpoint to an artifact, for the person at the command line."""


class ExportError(Exception):
    """Refused or failed. The message is one line that says why and what to do."""
