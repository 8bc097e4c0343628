"""What came of both stages, for people and for machines: the report, the matrix, and what another run proposes."""
