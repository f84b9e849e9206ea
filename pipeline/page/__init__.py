"""The page of a finished run: one HTML file that opens from disk, and its pictures as files."""
