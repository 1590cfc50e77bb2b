"""Steps: what one node of a plan is, and the fingerprint that names it."""
