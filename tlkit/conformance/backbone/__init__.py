"""What is asked of a backbone."""
