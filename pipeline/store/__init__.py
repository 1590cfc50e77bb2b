"""What is made: published artifacts, the records beside them, and where their bytes lie."""
