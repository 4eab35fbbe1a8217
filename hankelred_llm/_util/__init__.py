"""Progress bars, tables, numbers, YAML and near names, types of values, and actions after an import."""
