"""Progress bars, tables of plain text, numbers, and actions after an import."""
