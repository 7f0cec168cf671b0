"""What `convener init` copies: an agent, a supervisor and their test, to be changed into yours."""
