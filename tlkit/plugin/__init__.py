"""What strangers write against, and how it is found."""
