"""What every room needs: files, text, statistics, threads."""
