"""Research goals: limits, iterations, budgets, and the rule that stops them."""
