"""What is collected, how one unit runs, what is kept."""
