"""Errors that speak to the user."""


class ToPiError(Exception):
    """Something the user can mend. The message is one sentence that says what is wrong and what to do."""
