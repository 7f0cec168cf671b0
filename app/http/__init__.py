"""Parts that the routes of every feature share: access control, bounds, problems, fast routes, streams, OpenAPI."""
