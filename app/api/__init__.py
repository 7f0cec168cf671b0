"""The wire: requests into operations, answers and problems out of them."""
