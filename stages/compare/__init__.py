"""Compare a trial with its base, document by document."""
