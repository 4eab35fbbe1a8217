"""The recurrence of diagonal systems over batches of sequences, as a torch operator; its decoding step."""
