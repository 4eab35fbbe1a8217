"""The next byte of text or music."""
