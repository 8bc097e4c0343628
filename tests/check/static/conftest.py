"""A test that hangs fails."""

from quick_tests import in_time as in_time
