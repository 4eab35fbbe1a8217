"""Training, evaluating and comparing adapters and other methods of peft on tasks."""
