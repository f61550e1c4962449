"""What is wrong with a file, told so that its owner can mend it."""


class BrokenFileError(Exception):
    """A file is not what it should be. None of it is loaded until it changes."""
