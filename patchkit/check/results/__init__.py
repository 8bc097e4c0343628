"""What came of both stages, for people and for machines."""
