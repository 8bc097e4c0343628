"""The version of patchkit, in one place: the build, the command line and the reports read it here."""

__version__ = "0.1.0"
