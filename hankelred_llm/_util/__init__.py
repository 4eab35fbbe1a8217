"""Progress bars and tables of plain text."""
