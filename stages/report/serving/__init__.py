"""What serving costs, from points to advice."""
