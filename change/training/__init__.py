"""Training: the loop, what it leaves in a folder, and how it resumes."""
