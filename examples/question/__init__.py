"""A question of yours, pursued by six agents that ask a language model: hypotheses, reviews, matches, a summary."""
