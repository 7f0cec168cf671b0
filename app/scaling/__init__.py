"""How many workers run, what each works on, and with how much compute."""
