"""Progress bars, tables, numbers, YAML, types of values, the folder of results, actions after an import."""
