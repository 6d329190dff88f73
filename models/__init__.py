"""Example model files: plain Python that a user can copy, edit and export."""
