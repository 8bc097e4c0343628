"""Upstream's source as text: releases, their files, the classes in them, and the method that really runs."""
