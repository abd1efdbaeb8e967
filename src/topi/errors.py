"""Errors that speak to the user."""


class ToPiError(Exception):
    """Something the user can mend; one sentence says what is wrong and what to do."""
