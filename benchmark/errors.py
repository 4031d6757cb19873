"""The base of errors that are nobody's bug. Imports nothing, so that everybody can import it."""


class Explained(Exception):
    """An error whose message says all there is to say: what was expected, what came and what to do."""
