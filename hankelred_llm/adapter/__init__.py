"""The adapter: configuration, layers, the peft method, its files, and systems in and out."""
