"""What a model says, taken apart while it comes: reasoning, content, tool calls. Text in, events out; nothing else."""
