"""What a clock makes happen."""
