"""What a run would take, before anything is spent: units, bytes, memory, forward passes, hours."""
