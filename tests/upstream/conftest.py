"""A cache of its own for every test here, and a pip that knows only the index that the test gives it."""

from own_cache import own_cache as own_cache
from own_cache import use_index as use_index
from quick_tests import in_time as in_time
