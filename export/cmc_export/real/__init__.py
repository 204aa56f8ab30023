"""What the method does on real models: tasks, rivals, measurements."""
