"""What the routes of every feature share: bounds, problems, fast routes, streams, documentation."""
