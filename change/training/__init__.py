"""Training: the loop, the files that it writes, and how it resumes."""
