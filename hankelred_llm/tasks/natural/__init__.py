"""Tasks in plain sentences, their facts scattered among the sentences of another text."""
