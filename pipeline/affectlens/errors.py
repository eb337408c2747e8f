"""What a user can get wrong, as exceptions whose message is one sentence that says what to do."""


class UserError(Exception):
    """Something the user can put right; shown as one line, never as a traceback."""


class ConfigError(UserError):
    """The study file is wrong: names the file, the key, the value and the remedy. Exit status 2."""


class MissingResult(UserError):
    """A result was asked for (``--mode read-only``, ``report``) that the cache does not hold."""


class PartFailed(UserError):
    """One or more parts of a stage raised; their tracebacks lie beside the unfinished result."""


class DamagedResult(UserError):
    """A file in the cache is missing or no longer has the bytes that were written."""
