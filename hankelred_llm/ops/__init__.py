"""The recurrence of diagonal systems over batches of sequences, as an operator of torch; one token of it."""
